from test_history import *  # noqa
from remote_conformance import behind_a_daemon  # noqa
