"""Settings, paths, errors and artefact manifests: what every other package may import."""

import os

# OpenMP's threads spin while they wait. As soon as another program wants a core, the spinning thread holds up the one
# that works: on two busy cores training ran at a sixth of its speed. Read when torch is loaded, hence set here.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
