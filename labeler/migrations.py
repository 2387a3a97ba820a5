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


# What an assignment `a` of a task `t` adds to its annotator's standing.
_DONE = "({a}.state = 'submitted')"
_DEALT_OPEN = (
    "({a}.purpose = 'label' AND {a}.state IN ('submitted', 'skipped')"
    " AND {t}.submissions < {t}.overlap AND {t}.gold_ranks IS NULL)"
)
_SKIPPED = (
    "({a}.state = 'skipped'"
    " AND ({a}.purpose != 'label' OR {t}.gold_ranks IS NOT NULL OR {t}.submissions < {t}.overlap))"
)
_TODAY = "date('now', 'localtime')"

REBUILD_COUNTS = [
    """UPDATE projects SET
        num_tasks = (SELECT count(*) FROM tasks AS t WHERE t.project_id = projects.id AND t.gold_ranks IS NULL),
        num_gold = (SELECT count(*) FROM tasks AS t WHERE t.project_id = projects.id AND t.gold_ranks IS NOT NULL),
        num_open = (SELECT count(*) FROM tasks AS t
            WHERE t.project_id = projects.id AND t.submissions < t.overlap AND t.gold_ranks IS NULL)""",
    "DELETE FROM standings",
    f"""INSERT INTO standings (user_id, project_id, dealt, done, dealt_open, skipped, day, done_before)
        SELECT a.user_id, t.project_id, count(*), sum({_DONE.format(a="a")}), sum({_DEALT_OPEN.format(a="a", t="t")}),
            sum({_SKIPPED.format(a="a", t="t")}), {_TODAY},
            sum({_DONE.format(a="a")} AND NOT EXISTS (SELECT 1 FROM events AS e WHERE e.assignment_id = a.id
                AND e.kind = 'submit'
                AND e.created_at >= (julianday({_TODAY}, 'utc') - 2440587.5) * 86400.0))
        FROM assignments AS a JOIN tasks AS t ON t.id = a.task_id
        WHERE a.purpose != 'adjudicate' AND t.project_id IS NOT NULL GROUP BY a.user_id, t.project_id""",
]
"""Count projects and standings anew (tasks.rebuild_counts); triggers keep them right otherwise."""


def _standing(sign: str, row: str) -> str:
    """SET terms that add to a standing what one row of `assignments` (NEW or OLD) counts for, or take it away."""
    task = "(SELECT {} FROM tasks WHERE id = " + row + ".task_id)"
    terms = []
    for column, formula in (("done", _DONE), ("dealt_open", _DEALT_OPEN), ("skipped", _SKIPPED)):
        value = formula.format(a=row, t="{t}")
        for name in ("submissions", "overlap", "gold_ranks"):
            value = value.replace("{t}." + name, task.format(name))
        terms.append(f"{column} = {column} {sign} {value}")
    day = f"done_before = CASE WHEN day = {_TODAY} THEN done_before ELSE done END, day = {_TODAY}"
    return f"{day}, {', '.join(terms)}"


@steps()
def m004_assignment(db: Database) -> None:
    """Who is how far in a project, counted as it happens; who qualified; invitations.

    Counts are kept by triggers, so that whoever writes an assignment or a task (a page, the REST interface, an import)
    cannot forget them.
    """
    where = "WHERE user_id = {0}.user_id AND project_id = (SELECT project_id FROM tasks WHERE id = {0}.task_id)"
    was_open = "(OLD.submissions < OLD.overlap AND OLD.gold_ranks IS NULL)"
    is_open = "(NEW.submissions < NEW.overlap AND NEW.gold_ranks IS NULL)"
    _run(
        db,
        [
            # tasks that are no known answers, those of them that ask for more submissions, and known answers
            "ALTER TABLE projects ADD COLUMN num_tasks INTEGER NOT NULL DEFAULT 0",
            "ALTER TABLE projects ADD COLUMN num_open INTEGER NOT NULL DEFAULT 0",
            "ALTER TABLE projects ADD COLUMN num_gold INTEGER NOT NULL DEFAULT 0",
            f"""CREATE TABLE standings (
                user_id INTEGER NOT NULL REFERENCES users (id),
                project_id INTEGER NOT NULL REFERENCES projects (id),
                dealt INTEGER NOT NULL DEFAULT 0, -- assignments ever made, which is the position in their stream
                done INTEGER NOT NULL DEFAULT 0, -- assignments submitted
                dealt_open INTEGER NOT NULL DEFAULT 0, -- tasks they submitted or skipped that still ask for others
                skipped INTEGER NOT NULL DEFAULT 0, -- skipped, and could be brought back
                day TEXT NOT NULL DEFAULT ({_TODAY}), -- the local day of the last change,
                done_before INTEGER NOT NULL DEFAULT 0, -- and how many were done when it began
                cursor INTEGER, -- queues.py: the first task in their order that they have not dealt with
                PRIMARY KEY (user_id, project_id)
            ) STRICT, WITHOUT ROWID""",
            "CREATE INDEX standings_cursor ON standings (project_id) WHERE cursor IS NOT NULL",
            # random order: points spread over 31 bits, and the same for every process
            "ALTER TABLE tasks ADD COLUMN shuffle INTEGER GENERATED ALWAYS AS"
            " ((((id * id) % 2147483647) * 48271 + id * 16807) % 2147483647) VIRTUAL",
            "CREATE INDEX tasks_random ON tasks (project_id, shuffle)"
            " WHERE submissions < overlap AND gold_ranks IS NULL",
            # a task that was full and asks for somebody again may lie behind everybody's cursor
            "ALTER TABLE tasks ADD COLUMN reopened INTEGER NOT NULL DEFAULT 0",
            "CREATE INDEX tasks_reopened ON tasks (project_id, id)"
            " WHERE reopened = 1 AND submissions < overlap AND gold_ranks IS NULL",
            f"""CREATE TRIGGER tasks_added AFTER INSERT ON tasks WHEN NEW.project_id IS NOT NULL BEGIN
                UPDATE projects SET num_tasks = num_tasks + (NEW.gold_ranks IS NULL),
                    num_gold = num_gold + (NEW.gold_ranks IS NOT NULL), num_open = num_open + {is_open}
                    WHERE id = NEW.project_id;
                UPDATE standings SET cursor = NULL WHERE project_id = NEW.project_id AND cursor IS NOT NULL
                    AND (SELECT task_order FROM projects WHERE id = NEW.project_id) != 'queue'; END""",
            f"""CREATE TRIGGER tasks_counted AFTER UPDATE OF submissions, overlap, gold_ranks ON tasks
                WHEN NEW.project_id IS NOT NULL AND (
                    (OLD.submissions < OLD.overlap) != (NEW.submissions < NEW.overlap)
                    OR (OLD.gold_ranks IS NULL) != (NEW.gold_ranks IS NULL)) BEGIN
                UPDATE projects SET num_open = num_open + {is_open} - {was_open},
                    num_tasks = num_tasks + (NEW.gold_ranks IS NULL) - (OLD.gold_ranks IS NULL),
                    num_gold = num_gold + (NEW.gold_ranks IS NOT NULL) - (OLD.gold_ranks IS NOT NULL)
                    WHERE id = NEW.project_id;
                UPDATE standings SET dealt_open = dealt_open + {is_open} - {was_open}
                    WHERE project_id = NEW.project_id AND user_id IN (SELECT user_id FROM assignments
                        WHERE task_id = NEW.id AND purpose = 'label' AND state IN ('submitted', 'skipped'));
                UPDATE standings SET skipped = skipped + (NEW.submissions < NEW.overlap OR NEW.gold_ranks IS NOT NULL)
                        - (OLD.submissions < OLD.overlap OR OLD.gold_ranks IS NOT NULL)
                    WHERE project_id = NEW.project_id AND user_id IN (SELECT user_id FROM assignments
                        WHERE task_id = NEW.id AND purpose = 'label' AND state = 'skipped');
                UPDATE tasks SET reopened = 1
                    WHERE id = NEW.id AND {is_open} AND NOT {was_open} AND OLD.overlap = NEW.overlap;
                UPDATE standings SET cursor = NULL WHERE project_id = NEW.project_id AND cursor IS NOT NULL
                    AND {is_open} AND NOT {was_open} AND OLD.overlap != NEW.overlap; END""",
            """CREATE TRIGGER tasks_prioritised AFTER UPDATE OF priority ON tasks
                WHEN OLD.priority != NEW.priority BEGIN
                UPDATE standings SET cursor = NULL WHERE project_id = NEW.project_id AND cursor IS NOT NULL; END""",
            """CREATE TRIGGER projects_reordered AFTER UPDATE OF task_order ON projects BEGIN
                UPDATE standings SET cursor = NULL WHERE project_id = NEW.id; END""",
            f"""CREATE TRIGGER assignments_added AFTER INSERT ON assignments WHEN NEW.purpose != 'adjudicate' BEGIN
                INSERT INTO standings (user_id, project_id) SELECT NEW.user_id, project_id FROM tasks
                    WHERE id = NEW.task_id AND project_id IS NOT NULL ON CONFLICT DO NOTHING;
                UPDATE standings SET dealt = dealt + 1, {_standing("+", "NEW")} {where.format("NEW")}; END""",
            f"""CREATE TRIGGER assignments_changed AFTER UPDATE OF state ON assignments
                WHEN NEW.purpose != 'adjudicate' AND OLD.state != NEW.state BEGIN
                UPDATE standings SET {_standing("-", "OLD")} {where.format("OLD")};
                UPDATE standings SET {_standing("+", "NEW")} {where.format("NEW")}; END""",
            f"""CREATE TRIGGER assignments_removed AFTER DELETE ON assignments WHEN OLD.purpose != 'adjudicate' BEGIN
                UPDATE standings SET dealt = dealt - 1, {_standing("-", "OLD")} {where.format("OLD")}; END""",
            *REBUILD_COUNTS,
            "CREATE INDEX assignments_adjudicated ON assignments (opened_at) WHERE purpose = 'adjudicate'",
            # what can be taken back is found from the end
            "CREATE INDEX events_undo ON events (user_id, id) WHERE source = 'task' AND kind IN ('submit', 'skip')",
            """CREATE TABLE qualifications (
                user_id INTEGER NOT NULL REFERENCES users (id),
                project_id INTEGER NOT NULL REFERENCES projects (id),
                passed INTEGER NOT NULL CHECK (passed IN (0, 1)),
                after_assignment INTEGER NOT NULL DEFAULT 0, -- a fresh start: only what came after this one counts
                decided_by INTEGER REFERENCES users (id), -- NULL: passed by their answers
                decided_at REAL NOT NULL DEFAULT {now},
                PRIMARY KEY (user_id, project_id)
            ) STRICT, WITHOUT ROWID""",
            """CREATE TABLE invitations (
                id INTEGER PRIMARY KEY,
                token_hash TEXT NOT NULL UNIQUE,
                role TEXT NOT NULL CHECK (role IN ('annotator', 'lead', 'researcher', 'owner')),
                user_id INTEGER REFERENCES users (id), -- whose password the link sets; NULL: somebody new
                created_by INTEGER NOT NULL REFERENCES users (id),
                created_at REAL NOT NULL,
                expires_at REAL NOT NULL,
                used_by INTEGER REFERENCES users (id),
                used_at REAL
            ) STRICT""",
        ],
    )


ERASED = '{"erased": true}'
"""What is left of an event's payload when a person's data was deleted."""


@steps()
def m005_search(db: Database) -> None:
    """Rankings are found by their words, listed and counted fast; a person's data can be deleted.

    `in_force` holds one row for each assignment whose last word is a ranking; triggers keep it and the index of words.
    """
    ranked = """SELECT count(*) AS n FROM json_each(e.payload, '$.ranks') AS r
        JOIN json_each(e.payload, '$.completion_ids') AS i ON i.key = r.key JOIN completions AS c ON c.id = i.value
        WHERE r.value IS NOT NULL AND trim(c.text, char(9, 10, 13, 32)) != '' GROUP BY r.value"""
    _run(
        db,
        [
            """CREATE TABLE in_force (
                event_id INTEGER PRIMARY KEY REFERENCES events (id),
                assignment_id INTEGER NOT NULL UNIQUE REFERENCES assignments (id),
                task_id INTEGER NOT NULL REFERENCES tasks (id),
                project_id INTEGER REFERENCES projects (id),
                user_id INTEGER NOT NULL REFERENCES users (id),
                created_at REAL NOT NULL,
                pairs INTEGER NOT NULL, -- comparisons to learn from, ties included
                ties INTEGER NOT NULL
            ) STRICT""",
            "CREATE INDEX in_force_task ON in_force (task_id)",
            "CREATE INDEX in_force_user ON in_force (user_id, event_id)",
            "CREATE INDEX in_force_project ON in_force (project_id, event_id)",
            f"""CREATE VIEW ranking_rows AS SELECT e.id AS event_id, e.assignment_id, a.task_id, t.project_id,
                    a.user_id, e.created_at,
                    iif(json_extract(e.payload, '$.all_bad'), 0,
                        (SELECT coalesce(sum(n) * (sum(n) - 1) / 2, 0) FROM ({ranked}))) AS pairs,
                    iif(json_extract(e.payload, '$.all_bad'), 0,
                        (SELECT coalesce(sum(n * (n - 1) / 2), 0) FROM ({ranked}))) AS ties
                FROM events AS e JOIN assignments AS a ON a.id = e.assignment_id JOIN tasks AS t ON t.id = a.task_id""",
            """CREATE VIEW ranking_texts AS SELECT f.event_id,
                    (SELECT group_concat(json_extract(m.value, '$.content'), char(10))
                        FROM json_each(p.messages) AS m) AS prompt,
                    (SELECT group_concat(c.text, char(10)) FROM task_completions AS tc
                        JOIN completions AS c ON c.id = tc.completion_id WHERE tc.task_id = f.task_id) AS completions,
                    said.text AS comment
                FROM in_force AS f JOIN tasks AS t ON t.id = f.task_id JOIN prompts AS p ON p.id = t.prompt_id
                JOIN (SELECT id, coalesce(json_extract(payload, '$.comment'), '') || char(10)
                    || coalesce(json_extract(payload, '$.rewrite'), '') AS text FROM events) AS said
                    ON said.id = f.event_id""",
            *_search_index(db),
            "INSERT INTO in_force SELECT r.* FROM latest_rankings AS l JOIN ranking_rows AS r USING (event_id)",
            """CREATE TRIGGER events_in_force AFTER INSERT ON events
                WHEN NEW.kind IN ('submit', 'skip', 'retract', 'adjudicate') BEGIN
                DELETE FROM in_force WHERE assignment_id = NEW.assignment_id;
                INSERT INTO in_force SELECT * FROM ranking_rows
                    WHERE event_id = NEW.id AND NEW.kind IN ('submit', 'adjudicate');
                END""",
            # events are never changed, but for this: what a person said is replaced by a tombstone
            "DROP TRIGGER events_no_update",
            f"""CREATE TRIGGER events_no_update BEFORE UPDATE ON events
                WHEN NEW.payload != '{ERASED}' OR (NEW.id, NEW.uuid, NEW.assignment_id, NEW.user_id, NEW.kind,
                    NEW.source, NEW.created_at) != (OLD.id, OLD.uuid, OLD.assignment_id, OLD.user_id, OLD.kind,
                    OLD.source, OLD.created_at) OR NEW.client_time IS NOT OLD.client_time
                BEGIN SELECT RAISE(ABORT, 'events are append-only'); END""",
            """CREATE TRIGGER events_erased BEFORE UPDATE ON events BEGIN
                DELETE FROM in_force WHERE event_id = OLD.id; END""",
            "DROP VIEW latest_rankings",
            """CREATE VIEW latest_rankings AS
                SELECT f.event_id, e.uuid, f.assignment_id, f.task_id, t.prompt_id, f.project_id, f.user_id,
                    e.source, a.purpose, t.gold_ranks,
                    json_extract(e.payload, '$.completion_ids') AS completion_ids,
                    json_extract(e.payload, '$.ranks') AS ranks,
                    json_extract(e.payload, '$.all_bad') AS all_bad,
                    json_extract(e.payload, '$.comment') AS comment,
                    e.payload, e.client_time, f.created_at
                FROM in_force AS f
                JOIN events AS e ON e.id = f.event_id
                JOIN assignments AS a ON a.id = f.assignment_id
                JOIN tasks AS t ON t.id = f.task_id""",
            # imports look for the same completion of the same prompt, and for the task it stands in
            "DROP INDEX completions_prompt",
            "CREATE INDEX completions_prompt ON completions (prompt_id, substr(text, 1, 32))",
            "CREATE INDEX completions_demonstrations ON completions (id) WHERE source = 'demonstration'",
            "CREATE INDEX task_completions_completion ON task_completions (completion_id)",
            "CREATE INDEX assignments_repeat ON assignments (id) WHERE purpose = 'repeat'",
            "ALTER TABLE completions ADD COLUMN written_by INTEGER REFERENCES users (id)",  # NULL: a model, or unknown
            "ALTER TABLE snapshots ADD COLUMN format TEXT NOT NULL DEFAULT 'rows'",
            "ALTER TABLE snapshots ADD COLUMN erased_at REAL",  # somebody in it was deleted: it cannot be made again
            """CREATE TABLE erasures (
                id INTEGER PRIMARY KEY,
                user_id INTEGER NOT NULL REFERENCES users (id), -- whose data; the name is gone
                erased_by INTEGER REFERENCES users (id),
                counts TEXT NOT NULL CHECK (json_valid(counts)),
                created_at REAL NOT NULL DEFAULT {now},
                cleaned_at REAL -- when the file was rewritten without the deleted bytes
            ) STRICT""",
        ],
    )


def _search_index(db: Database) -> list[str]:
    """The index of words and its triggers; nothing where this SQLite has no FTS5."""
    if not db.execute("SELECT 1 FROM pragma_module_list WHERE name = 'fts5'").fetchone():
        return []
    return [
        """CREATE VIRTUAL TABLE search USING fts5(prompt, completions, comment, content='ranking_texts',
            content_rowid='event_id', columnsize=0, tokenize='unicode61 remove_diacritics 2')""",
        *_search_triggers("", ""),
    ]


def _search_triggers(when_found: str, when_lost: str) -> list[str]:
    columns = "rowid, prompt, completions, comment"
    text = "SELECT {} event_id, prompt, completions, comment FROM ranking_texts WHERE event_id = {}.event_id"
    return [
        f"""CREATE TRIGGER in_force_found AFTER INSERT ON in_force {when_found} BEGIN
            INSERT INTO search ({columns}) {text.format("", "NEW")}; END""",
        f"""CREATE TRIGGER in_force_lost BEFORE DELETE ON in_force {when_lost} BEGIN
            INSERT INTO search (search, {columns}) {text.format("'delete',", "OLD")}; END""",
    ]


@steps()
def m006_tokens(db: Database) -> None:
    """Keys with which a person's own programs ask in their name."""
    _run(
        db,
        [
            """CREATE TABLE tokens (
                id INTEGER PRIMARY KEY,
                user_id INTEGER NOT NULL REFERENCES users (id),
                name TEXT NOT NULL CHECK (length(trim(name)) > 0),
                token_hash TEXT NOT NULL UNIQUE,
                created_at REAL NOT NULL,
                expires_at REAL, -- NULL: never
                last_used_at REAL, -- within a minute
                revoked_at REAL
            ) STRICT""",
            "CREATE INDEX tokens_user ON tokens (user_id, id)",
        ],
    )


@steps()
def m007_adjudications(db: Database) -> None:
    """Which tasks a lead has settled is asked for every snapshot."""
    _run(db, ["CREATE INDEX assignments_adjudicate ON assignments (task_id) WHERE purpose = 'adjudicate'"])


@steps()
def m008_undo(db: Database) -> None:
    """What was said from a program can be taken back in the Rank tab, too."""
    kinds = "source IN ('task', 'api') AND kind IN ('submit', 'skip')"
    _run(db, ["DROP INDEX events_undo", f"CREATE INDEX events_undo ON events (user_id, id) WHERE {kinds}"])


@steps()
def m009_queue(db: Database) -> None:
    """Runs that wait for one another, in an order that people change; projects that a sampling run makes."""
    _run(
        db,
        [
            "ALTER TABLE jobs ADD COLUMN position INTEGER NOT NULL DEFAULT 0",  # the lowest that waits starts next
            """UPDATE jobs SET position =
                (SELECT count(*) FROM jobs AS o WHERE (o.queued_at, o.id) <= (jobs.queued_at, jobs.id))""",
            "ALTER TABLE jobs ADD COLUMN parent_job TEXT REFERENCES jobs (id)",  # starts from its last checkpoint
            "ALTER TABLE jobs ADD COLUMN reward_job TEXT REFERENCES jobs (id)",  # is rewarded by its last checkpoint
            "ALTER TABLE jobs ADD COLUMN stopped_by TEXT REFERENCES jobs (id)",  # the run whose end cancelled this one
            "ALTER TABLE projects ADD COLUMN job_id TEXT REFERENCES jobs (id)",  # the sampling run that fills it
            "CREATE UNIQUE INDEX projects_job ON projects (job_id) WHERE job_id IS NOT NULL",
        ],
    )


@steps()
def m010_checkpoints(db: Database) -> None:
    """Checkpoints have notes and tags, leave the choosers, and are deleted without their name being lost."""
    _run(
        db,
        [
            "ALTER TABLE checkpoints ADD COLUMN note TEXT NOT NULL DEFAULT ''",
            "ALTER TABLE checkpoints ADD COLUMN tags TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(tags))",
            "ALTER TABLE checkpoints ADD COLUMN archived_at REAL",
            "ALTER TABLE checkpoints ADD COLUMN deleted_at REAL",  # the files are gone, the row stays
            "CREATE INDEX checkpoints_parent ON checkpoints (parent_id)",
        ],
    )


@steps()
def m011_conversations(db: Database) -> None:
    """What people and models said to each other in Chat, as trees: a version or a branch is another child."""
    _run(
        db,
        [
            # ids are never used twice: the thread that writes an answer outlives a conversation that is deleted
            """CREATE TABLE conversations (
                id INTEGER PRIMARY KEY AUTOINCREMENT,
                user_id INTEGER NOT NULL REFERENCES users (id),
                title TEXT NOT NULL,
                settings TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(settings)), -- those of the last answer
                leaf_id INTEGER REFERENCES turns (id) ON DELETE SET NULL, -- the end of the branch that is shown
                created_at REAL NOT NULL DEFAULT {now},
                opened_at REAL NOT NULL DEFAULT {now}
            ) STRICT""",
            "CREATE INDEX conversations_user ON conversations (user_id, opened_at)",
            """CREATE TABLE turns (
                id INTEGER PRIMARY KEY AUTOINCREMENT,
                conversation_id INTEGER NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
                parent_id INTEGER REFERENCES turns (id),
                role TEXT NOT NULL CHECK (role IN ('user', 'assistant')),
                text TEXT NOT NULL,
                checkpoint_id INTEGER REFERENCES checkpoints (id) ON DELETE SET NULL,
                settings TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(settings)),
                num_tokens INTEGER,
                first_token_seconds REAL, -- from the question to the first token
                seconds REAL, -- from the first token to the last
                finish_reason TEXT -- NULL: a question, or still being written
                    CHECK (finish_reason IN ('stop', 'length', 'stopped', 'interrupted')),
                created_at REAL NOT NULL DEFAULT {now}
            ) STRICT""",
            "CREATE INDEX turns_conversation ON turns (conversation_id, id)",
            "CREATE INDEX turns_parent ON turns (parent_id)",
            "CREATE INDEX turns_writing ON turns (id) WHERE role = 'assistant' AND finish_reason IS NULL",
            """CREATE TABLE turn_scores (
                turn_id INTEGER NOT NULL REFERENCES turns (id) ON DELETE CASCADE,
                checkpoint_id INTEGER NOT NULL REFERENCES checkpoints (id) ON DELETE CASCADE,
                score REAL NOT NULL, -- as the reward model gives it
                PRIMARY KEY (turn_id, checkpoint_id)
            ) STRICT, WITHOUT ROWID""",
            """CREATE TABLE turn_preferences (
                first_id INTEGER NOT NULL REFERENCES turns (id) ON DELETE CASCADE,
                second_id INTEGER NOT NULL REFERENCES turns (id) ON DELETE CASCADE,
                task_id INTEGER NOT NULL REFERENCES tasks (id),
                PRIMARY KEY (first_id, second_id),
                CHECK (first_id < second_id)
            ) STRICT, WITHOUT ROWID""",
            """CREATE TABLE system_prompts (
                user_id INTEGER NOT NULL REFERENCES users (id),
                name TEXT NOT NULL CHECK (length(trim(name)) > 0),
                text TEXT NOT NULL,
                PRIMARY KEY (user_id, name)
            ) STRICT, WITHOUT ROWID""",
        ],
    )


@steps()
def m012_index_together(db: Database) -> None:
    """The words of many rankings go into the index in one statement (search.indexed_together)."""
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'search'").fetchone():
        return
    later = "WHEN {0}.event_id <= coalesce((SELECT after_event_id FROM unindexed), {0}.event_id)"
    _run(
        db,
        [
            # no row, or one inside a transaction that indexes the rankings after this event itself
            "CREATE TABLE unindexed (after_event_id INTEGER NOT NULL) STRICT",
            "DROP TRIGGER in_force_found",
            "DROP TRIGGER in_force_lost",
            *_search_triggers(later.format("NEW"), later.format("OLD")),
        ],
    )
