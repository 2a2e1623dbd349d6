from test_checkpoint_resume import *  # noqa
from remote_conformance import behind_a_daemon  # noqa
