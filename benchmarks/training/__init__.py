"""What train_speed.py, time_to_loss.py and compare_settings.py share: both arms, their text, clocks and scores."""
