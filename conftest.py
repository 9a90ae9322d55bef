"""What needs mmsegmentation is collected only where it is installed (``make test-mmseg``)."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("mmseg") else ["src/aucseg/integrations/mmseg.py", "tests/integrations/test_mmseg.py"]
