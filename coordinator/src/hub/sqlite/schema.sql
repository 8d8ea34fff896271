-- Each table holds documents as JSON, and beside them the fields that calls filter, order or compare by.
CREATE TABLE requests (
    id TEXT PRIMARY KEY, created_at INTEGER NOT NULL, state TEXT NOT NULL, expanded INTEGER NOT NULL,
    doc TEXT NOT NULL
);
CREATE INDEX requests_newest ON requests (created_at DESC, id DESC);
CREATE INDEX requests_by_state ON requests (state, created_at DESC, id DESC);

-- "place" is a task's order in its request.
CREATE TABLE tasks (
    id TEXT PRIMARY KEY, request_id TEXT NOT NULL, place INTEGER NOT NULL, state TEXT NOT NULL,
    deployment_key TEXT NOT NULL, pool TEXT, revision INTEGER NOT NULL, doc TEXT NOT NULL
);
CREATE INDEX tasks_in_order ON tasks (request_id, place);
CREATE INDEX tasks_by_state ON tasks (state, request_id, place);
CREATE INDEX tasks_by_count ON tasks (request_id, state);
CREATE INDEX tasks_by_deployment ON tasks (deployment_key, state);
CREATE INDEX tasks_by_pool ON tasks (pool, state);

CREATE TABLE parts (
    id TEXT PRIMARY KEY, task_id TEXT NOT NULL, attempt INTEGER NOT NULL, seq INTEGER NOT NULL,
    sha256 TEXT NOT NULL, doc TEXT NOT NULL
);
CREATE INDEX parts_in_order ON parts (task_id, attempt, seq);

CREATE TABLE finals (
    id TEXT PRIMARY KEY, task_id TEXT NOT NULL, attempt INTEGER NOT NULL, doc TEXT NOT NULL
);
CREATE INDEX finals_in_order ON finals (task_id, attempt);

CREATE TABLE profiles (
    id TEXT PRIMARY KEY, request_id TEXT NOT NULL, model TEXT NOT NULL, version TEXT NOT NULL,
    created_at INTEGER NOT NULL, revision INTEGER NOT NULL, doc TEXT NOT NULL
);
CREATE INDEX profiles_newest ON profiles (created_at DESC, id DESC);
CREATE INDEX profiles_by_request ON profiles (request_id);
CREATE INDEX profiles_by_model ON profiles (model, created_at DESC, id DESC);

CREATE TABLE workers (id TEXT PRIMARY KEY, doc TEXT NOT NULL);

CREATE TABLE models (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, version TEXT NOT NULL, created_at INTEGER NOT NULL,
    doc TEXT NOT NULL
);
CREATE INDEX models_newest ON models (name, created_at DESC, id DESC);
