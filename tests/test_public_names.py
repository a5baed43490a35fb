"""What `import tavq_plugin` offers is found when it is first used, however its modules were imported before."""

import subprocess
import sys

import tavq_plugin as tavq

# In a process of its own: here, earlier tests have used the names already.
FRESH = """
import tavq_plugin.attach
import tavq_plugin as tavq
for name in tavq.__all__:
    assert name in dir(tavq), name
    found = getattr(tavq, name)
    assert callable(found) and found.__name__ == name, (name, found)
assert tavq.ot.solve, "a room is found without an import of its own"
assert tavq.align.solve is tavq.ot.solve, "a former room too"
assert not hasattr(tavq, "nothing")
"""


def test_the_public_names_are_found_when_used():
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_star_import_gives_the_public_names():
    names = {}
    exec("from tavq_plugin import *", names)
    assert set(tavq.__all__) <= names.keys()
    assert names["attach"] is tavq.attach
