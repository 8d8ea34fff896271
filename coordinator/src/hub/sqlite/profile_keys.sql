-- What profiles are filtered and sorted by, beside them: made where it is missing, and kept by the file itself, so that
-- older programs that write profiles keep it, too. A profile without a figure counts as the slowest.
CREATE VIEW profile_keys_of AS SELECT
    id, request_id, model, version,
    json_extract(doc, '$.engine.name') AS engine,
    json_extract(doc, '$.device.class') AS device_class,
    json_extract(doc, '$.batch_size') AS batch_size,
    json_extract(doc, '$.state') AS state,
    CASE WHEN coalesce(json_type(doc, '$.sla'), 'null') = 'null' THEN 'unset'
        ELSE CASE json_extract(doc, '$.sla.met') WHEN 1 THEN 'met' WHEN 0 THEN 'missed' ELSE 'open' END END AS sla,
    created_at,
    coalesce(json_extract(doc, '$.peak.throughput_inferences_per_s'), -1.0) AS throughput,
    coalesce(json_extract(doc, '$.peak.p95_latency_ms'), 1.7976931348623157e308) AS p95_latency
    FROM profiles;

CREATE TABLE profile_keys (
    id TEXT PRIMARY KEY, request_id TEXT NOT NULL, model TEXT NOT NULL, version TEXT NOT NULL, engine TEXT,
    device_class TEXT, batch_size INTEGER, state TEXT, sla TEXT NOT NULL,
    created_at INTEGER NOT NULL, throughput REAL NOT NULL, p95_latency REAL NOT NULL
) WITHOUT ROWID;
-- One index for each order, wide enough that a filter is decided within it.
CREATE INDEX keys_by_created_at ON profile_keys
    (created_at, id, engine, device_class, batch_size, state, sla, model, version, request_id);
CREATE INDEX keys_by_batch_size ON profile_keys
    (batch_size, id, engine, device_class, state, sla, model, version, request_id, created_at);
CREATE INDEX keys_by_throughput ON profile_keys
    (throughput, id, engine, device_class, batch_size, state, sla, model, version, request_id, created_at);
CREATE INDEX keys_by_p95_latency ON profile_keys
    (p95_latency, id, engine, device_class, batch_size, state, sla, model, version, request_id, created_at);
-- Where few profiles fit, they are found by these and sorted, without a look at the table itself.
CREATE INDEX keys_by_request ON profile_keys
    (request_id, engine, device_class, batch_size, state, sla, model, version, created_at, throughput, p95_latency);
CREATE INDEX keys_by_model ON profile_keys
    (model, version, engine, device_class, batch_size, state, sla, request_id, created_at, throughput, p95_latency);
CREATE INDEX keys_by_cell ON profile_keys (batch_size, engine, device_class, state, sla);
CREATE INDEX keys_by_outcome ON profile_keys (state, sla, engine, device_class);

CREATE TABLE profile_labels (
    name TEXT NOT NULL, value TEXT NOT NULL, id TEXT NOT NULL, PRIMARY KEY (name, value, id)
) WITHOUT ROWID;
CREATE INDEX labels_of ON profile_labels (id);

CREATE TRIGGER profile_inserted AFTER INSERT ON profiles BEGIN
    INSERT OR REPLACE INTO profile_keys SELECT * FROM profile_keys_of WHERE id = NEW.id;
    INSERT OR REPLACE INTO profile_labels SELECT key, value, NEW.id FROM json_each(NEW.doc, '$.labels');
END;
CREATE TRIGGER profile_replaced AFTER UPDATE ON profiles BEGIN
    DELETE FROM profile_labels WHERE id = OLD.id;
    INSERT OR REPLACE INTO profile_keys SELECT * FROM profile_keys_of WHERE id = NEW.id;
    INSERT OR REPLACE INTO profile_labels SELECT key, value, NEW.id FROM json_each(NEW.doc, '$.labels');
END;
-- A damaged document is in nobody's way here.
INSERT INTO profile_keys SELECT * FROM profile_keys_of WHERE id IN (SELECT id FROM profiles WHERE json_valid(doc));
INSERT INTO profile_labels SELECT label.key, label.value, sound.id
    FROM (SELECT id, doc FROM profiles WHERE json_valid(doc)) AS sound, json_each(sound.doc, '$.labels') AS label;
