//! Asking work on other threads to end early.

use crate::error::{Error, Result};
use std::sync::atomic::{AtomicBool, Ordering};

/// A request to stop. The one who waits for the work sets it, and the work checks it every few
/// milliseconds.
#[derive(Debug, Default)]
pub struct Stop(AtomicBool);

impl Stop {
    /// Ask the work to stop.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// An error once the work was asked to stop.
    pub fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }
}
