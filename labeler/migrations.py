"""The database's history: each function is one step, applied once, in order. Never edit a step that was released.

Times are unix seconds (REAL). JSON columns are checked to be JSON. Tables are STRICT.
"""

from __future__ import annotations

from sqlite_utils import Database, Migrations

from data.records import InputError

steps = Migrations("labeler")

NOW = "((julianday('now') - 2440587.5) * 86400.0)"  # unixepoch('subsec') is younger than the SQLite of many systems


def apply(db: Database) -> None:
    """Bring the database up to date. Raises InputError where a newer version of the program wrote it."""
    known = {step.name for step in steps.pending(db)} | {step.name for step in steps.applied(db)}
    registered = {step.name for step in steps._migrations}
    unknown = sorted(known - registered)
    if unknown:
        raise InputError(
            f"the workspace was written by a newer version (it has {', '.join(unknown)}); update, then start"
        )
    steps.apply(db)


def _run(db: Database, statements: list[str]) -> None:
    for statement in statements:  # one by one: executescript would commit the migration half-way
        db.execute(statement.replace("{now}", NOW))


@steps()
def m001_labeling(db: Database) -> None:
    """Who ranks, what is ranked, and what they said."""
    _run(
        db,
        [
            """CREATE TABLE users (
                id INTEGER PRIMARY KEY,
                name TEXT NOT NULL COLLATE NOCASE UNIQUE CHECK (length(trim(name)) > 0),
                role TEXT NOT NULL CHECK (role IN ('annotator', 'lead', 'researcher', 'owner')),
                password_hash TEXT,
                created_at REAL NOT NULL DEFAULT {now},
                disabled_at REAL
            ) STRICT""",
            """CREATE TABLE sessions (
                token_hash TEXT PRIMARY KEY,
                user_id INTEGER NOT NULL REFERENCES users (id),
                created_at REAL NOT NULL,
                expires_at REAL NOT NULL
            ) STRICT""",
            """CREATE TABLE prompts (
                id INTEGER PRIMARY KEY,
                external_id TEXT UNIQUE,
                messages TEXT NOT NULL CHECK (json_valid(messages)),
                content_hash TEXT NOT NULL UNIQUE,
                category TEXT NOT NULL DEFAULT '',
                source TEXT NOT NULL,
                created_at REAL NOT NULL DEFAULT {now}
            ) STRICT""",
            """CREATE TABLE checkpoints (
                id INTEGER PRIMARY KEY,
                name TEXT NOT NULL UNIQUE,
                kind TEXT NOT NULL CHECK (kind IN ('base', 'policy', 'reward')),
                run_id TEXT,
                step INTEGER,
                path TEXT, -- relative to the workspace; NULL for a base model
                base_model TEXT NOT NULL,
                parent_id INTEGER REFERENCES checkpoints (id),
                manifest TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(manifest)),
                created_at REAL NOT NULL DEFAULT {now}
            ) STRICT""",
            "CREATE INDEX checkpoints_run ON checkpoints (run_id, step)",
            """CREATE TABLE completions (
                id INTEGER PRIMARY KEY,
                prompt_id INTEGER NOT NULL REFERENCES prompts (id),
                text TEXT NOT NULL,
                checkpoint_id INTEGER REFERENCES checkpoints (id), -- NULL: written by a person or of unknown origin
                sampling TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(sampling)),
                num_tokens INTEGER,
                finish_reason TEXT CHECK (finish_reason IN ('stop', 'length')),
                source TEXT NOT NULL,
                created_at REAL NOT NULL DEFAULT {now}
            ) STRICT""",
            "CREATE INDEX completions_prompt ON completions (prompt_id)",
            "CREATE INDEX completions_checkpoint ON completions (checkpoint_id)",
            """CREATE TABLE tasks (
                id INTEGER PRIMARY KEY,
                prompt_id INTEGER NOT NULL REFERENCES prompts (id),
                overlap INTEGER NOT NULL DEFAULT 1 CHECK (overlap >= 1),
                submissions INTEGER NOT NULL DEFAULT 0, -- assignments in state 'submitted', kept by tasks.py
                source TEXT NOT NULL,
                created_at REAL NOT NULL DEFAULT {now}
            ) STRICT""",
            "CREATE INDEX tasks_open ON tasks (id) WHERE submissions < overlap",
            "CREATE INDEX tasks_prompt ON tasks (prompt_id)",
            """CREATE TABLE task_completions (
                task_id INTEGER NOT NULL REFERENCES tasks (id),
                position INTEGER NOT NULL,
                completion_id INTEGER NOT NULL REFERENCES completions (id),
                PRIMARY KEY (task_id, position),
                UNIQUE (task_id, completion_id)
            ) STRICT, WITHOUT ROWID""",
            """CREATE TABLE assignments (
                id INTEGER PRIMARY KEY,
                task_id INTEGER NOT NULL REFERENCES tasks (id),
                user_id INTEGER NOT NULL REFERENCES users (id),
                display_order TEXT NOT NULL CHECK (json_valid(display_order)), -- completion ids as shown
                state TEXT NOT NULL CHECK (state IN ('open', 'released', 'submitted', 'skipped')),
                opened_at REAL NOT NULL,
                leased_until REAL NOT NULL
            ) STRICT""",
            "CREATE UNIQUE INDEX assignments_task_user ON assignments (task_id, user_id)",
            "CREATE INDEX assignments_user_state ON assignments (user_id, state, opened_at)",
            # what somebody has not submitted yet; the only thing about a ranking that is ever overwritten
            """CREATE TABLE drafts (
                assignment_id INTEGER PRIMARY KEY REFERENCES assignments (id),
                payload TEXT NOT NULL CHECK (json_valid(payload)),
                updated_at REAL NOT NULL
            ) STRICT""",
            """CREATE TABLE events (
                id INTEGER PRIMARY KEY AUTOINCREMENT,
                uuid TEXT NOT NULL UNIQUE, -- made where the click happened, so that a retry lands once
                assignment_id INTEGER NOT NULL REFERENCES assignments (id),
                user_id INTEGER NOT NULL REFERENCES users (id),
                kind TEXT NOT NULL CHECK (kind IN ('submit', 'skip', 'flag', 'retract', 'adjudicate')),
                source TEXT NOT NULL,
                payload TEXT NOT NULL CHECK (json_valid(payload)),
                client_time REAL,
                created_at REAL NOT NULL
            ) STRICT""",
            "CREATE INDEX events_assignment ON events (assignment_id, kind, id)",
            "CREATE INDEX events_user ON events (user_id, created_at)",
            """CREATE TRIGGER events_no_update BEFORE UPDATE ON events
                BEGIN SELECT RAISE(ABORT, 'events are append-only'); END""",
            """CREATE TRIGGER events_no_delete BEFORE DELETE ON events
                BEGIN SELECT RAISE(ABORT, 'events are append-only'); END""",
            # INSERT OR REPLACE deletes without asking the trigger above
            """CREATE TRIGGER events_no_replace BEFORE INSERT ON events
                WHEN EXISTS (SELECT 1 FROM events WHERE uuid = NEW.uuid OR id = NEW.id)
                BEGIN SELECT RAISE(ABORT, 'events are append-only'); END""",
            """CREATE TABLE snapshots (
                id INTEGER PRIMARY KEY,
                kind TEXT NOT NULL CHECK (kind IN ('preferences', 'demonstrations', 'prompts')),
                path TEXT NOT NULL,
                sha256 TEXT NOT NULL,
                filters TEXT NOT NULL CHECK (json_valid(filters)),
                counts TEXT NOT NULL CHECK (json_valid(counts)),
                event_high_water INTEGER NOT NULL,
                created_by INTEGER REFERENCES users (id),
                created_at REAL NOT NULL DEFAULT {now}
            ) STRICT""",
            # The ranking in force of each assignment: its last submit, unless taken back or replaced since.
            # `ranks` is aligned with `completion_ids`.
            """CREATE VIEW latest_rankings AS
                SELECT e.id AS event_id, e.uuid, e.assignment_id, a.task_id, t.prompt_id, e.user_id, e.source,
                    json_extract(e.payload, '$.completion_ids') AS completion_ids,
                    json_extract(e.payload, '$.ranks') AS ranks,
                    json_extract(e.payload, '$.all_bad') AS all_bad,
                    json_extract(e.payload, '$.comment') AS comment,
                    e.payload, e.client_time, e.created_at
                FROM events AS e
                JOIN assignments AS a ON a.id = e.assignment_id
                JOIN tasks AS t ON t.id = a.task_id
                WHERE e.kind = 'submit' AND NOT EXISTS (
                    SELECT 1 FROM events AS later
                    WHERE later.assignment_id = e.assignment_id
                        AND later.kind IN ('submit', 'skip', 'retract', 'adjudicate') AND later.id > e.id)""",
        ],
    )


@steps()
def m002_jobs(db: Database) -> None:
    """Training runs: what was asked for, which process does it, how it ended."""
    _run(
        db,
        [
            """CREATE TABLE jobs (
                id TEXT PRIMARY KEY, -- also the name of the run's folder
                method TEXT NOT NULL,
                config TEXT NOT NULL CHECK (json_valid(config)),
                state TEXT NOT NULL
                    CHECK (state IN ('queued', 'running', 'finished', 'failed', 'stopped', 'interrupted')),
                snapshot_id INTEGER REFERENCES snapshots (id),
                parent_checkpoint_id INTEGER NOT NULL REFERENCES checkpoints (id), -- what it starts from
                reward_checkpoint_id INTEGER REFERENCES checkpoints (id), -- what PPO is rewarded by
                resume INTEGER NOT NULL DEFAULT 0, -- 1: go on from the newest checkpoint instead of from the start
                queued_at REAL NOT NULL,
                stop_requested_at REAL,
                pid INTEGER,
                process_started REAL, -- beside the pid, because pids are used again
                error TEXT,
                result TEXT CHECK (result IS NULL OR json_valid(result)),
                created_by INTEGER REFERENCES users (id),
                created_at REAL NOT NULL,
                started_at REAL,
                finished_at REAL
            ) STRICT""",
            "CREATE INDEX jobs_state ON jobs (state, queued_at)",
        ],
    )


@steps()
def m003_projects(db: Database) -> None:
    """What is asked of whom: projects, their guidelines and members, known answers, repeats.

    A task without a project was done when it was made (a comparison, a chat); nobody is given it.
    """
    _run(
        db,
        [
            """CREATE TABLE projects (
                id INTEGER PRIMARY KEY,
                name TEXT NOT NULL COLLATE NOCASE UNIQUE CHECK (length(trim(name)) > 0),
                question TEXT NOT NULL DEFAULT 'ranking' CHECK (question IN ('ranking', 'pairwise', 'ratings')),
                overlap INTEGER NOT NULL DEFAULT 1 CHECK (overlap >= 1), -- annotators a task, for new tasks
                task_order TEXT NOT NULL DEFAULT 'queue' CHECK (task_order IN ('queue', 'random', 'active')),
                gold_rate REAL NOT NULL DEFAULT 0 CHECK (gold_rate BETWEEN 0 AND 1), -- share with known answers
                repeat_rate REAL NOT NULL DEFAULT 0 CHECK (repeat_rate BETWEEN 0 AND 1), -- share shown a second time
                qualification INTEGER NOT NULL DEFAULT 0 CHECK (qualification >= 0), -- known answers first
                pass_mark REAL NOT NULL DEFAULT 0.7 CHECK (pass_mark BETWEEN 0 AND 1), -- agreement that qualifies
                tags TEXT NOT NULL CHECK (json_valid(tags)), -- what may be said of a completion
                for_everybody INTEGER NOT NULL DEFAULT 1 CHECK (for_everybody IN (0, 1)), -- 0: members only
                created_by INTEGER REFERENCES users (id),
                created_at REAL NOT NULL DEFAULT {now},
                archived_at REAL
            ) STRICT""",
            """CREATE TABLE guidelines (
                project_id INTEGER NOT NULL REFERENCES projects (id),
                version INTEGER NOT NULL,
                text TEXT NOT NULL,
                created_by INTEGER REFERENCES users (id),
                created_at REAL NOT NULL DEFAULT {now},
                PRIMARY KEY (project_id, version)
            ) STRICT, WITHOUT ROWID""",
            """CREATE TABLE members (
                project_id INTEGER NOT NULL REFERENCES projects (id),
                user_id INTEGER NOT NULL REFERENCES users (id),
                PRIMARY KEY (project_id, user_id)
            ) STRICT, WITHOUT ROWID""",
            'INSERT INTO projects (id, name, tags) VALUES (1, \'First project\', \'["helpful", "truthful", '
            '"harmless", "fails the instruction", "repetitive"]\')',
            "ALTER TABLE tasks ADD COLUMN project_id INTEGER REFERENCES projects (id)",
            "UPDATE tasks SET project_id = 1 WHERE source NOT IN ('compare', 'chat')",
            # ranks of the known answer, aligned with task_completions.position; such a task is not learned from
            "ALTER TABLE tasks ADD COLUMN gold_ranks TEXT CHECK (gold_ranks IS NULL OR json_valid(gold_ranks))",
            "ALTER TABLE tasks ADD COLUMN priority REAL NOT NULL DEFAULT 0",  # active order: the highest comes first
            "ALTER TABLE tasks ADD COLUMN provenance TEXT CHECK (provenance IS NULL OR json_valid(provenance))",
            "DROP INDEX tasks_open",
            "CREATE INDEX tasks_open ON tasks (project_id, id) WHERE submissions < overlap AND gold_ranks IS NULL",
            "CREATE INDEX tasks_active ON tasks (project_id, priority DESC, id)"
            " WHERE submissions < overlap AND gold_ranks IS NULL",
            "CREATE INDEX tasks_gold ON tasks (project_id, id) WHERE gold_ranks IS NOT NULL",
            # a repeat asks the same person the same task again, an adjudication settles what annotators disagree on;
            # neither counts toward the overlap
            "ALTER TABLE assignments ADD COLUMN purpose TEXT NOT NULL DEFAULT 'label'"
            " CHECK (purpose IN ('label', 'repeat', 'adjudicate'))",
            "DROP INDEX assignments_task_user",
            "CREATE UNIQUE INDEX assignments_task_user ON assignments (task_id, user_id, purpose)",
            "CREATE INDEX assignments_open ON assignments (task_id, leased_until) WHERE state = 'open'",
            # what is in force of everything that was said; snapshots.py says what of it is learned from
            "DROP VIEW latest_rankings",
            """CREATE VIEW latest_rankings AS
                SELECT e.id AS event_id, e.uuid, e.assignment_id, a.task_id, t.prompt_id, t.project_id, e.user_id,
                    e.source, a.purpose, t.gold_ranks,
                    json_extract(e.payload, '$.completion_ids') AS completion_ids,
                    json_extract(e.payload, '$.ranks') AS ranks,
                    json_extract(e.payload, '$.all_bad') AS all_bad,
                    json_extract(e.payload, '$.comment') AS comment,
                    e.payload, e.client_time, e.created_at
                FROM events AS e
                JOIN assignments AS a ON a.id = e.assignment_id
                JOIN tasks AS t ON t.id = a.task_id
                WHERE e.kind IN ('submit', 'adjudicate') AND NOT EXISTS (
                    SELECT 1 FROM events AS later
                    WHERE later.assignment_id = e.assignment_id
                        AND later.kind IN ('submit', 'skip', 'retract', 'adjudicate') AND later.id > e.id)""",
        ],
    )


@steps()
def m007_adjudications(db: Database) -> None:
    """Which tasks a lead has settled is asked for every snapshot."""
    _run(db, ["CREATE INDEX assignments_adjudicate ON assignments (task_id) WHERE purpose = 'adjudicate'"])
