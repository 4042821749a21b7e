"""Write the migration from the last one to `schema`: python -m phantom_s2v.studio.migrations "What changes" 0002."""

import sys
import tempfile
from pathlib import Path

from alembic import command

from phantom_s2v.studio import database

with tempfile.TemporaryDirectory() as folder:
    engine = database.open_engine(f"sqlite:///{Path(folder) / 'empty.sqlite'}")
    database.upgrade(engine)
    with engine.execution_options(writes=True).begin() as connection:
        command.revision(database.migrations(connection), message=sys.argv[1], autogenerate=True, rev_id=sys.argv[2])
    engine.dispose()
