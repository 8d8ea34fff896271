-- What a slot must be able to do, as one text, and the waiting tasks of a request by it. The column is computed from the
-- document, so that tasks of earlier builds and of older programs have it.
ALTER TABLE tasks ADD COLUMN kind TEXT GENERATED ALWAYS AS (
    CASE WHEN json_valid(doc) THEN json_extract(
        doc, '$.cell.engine', '$.cell.artifact.format', '$.cell.device_class', '$.cell.inspector'
    ) END
) VIRTUAL;
CREATE INDEX tasks_waiting ON tasks (request_id, kind, place) WHERE state = 'waiting';
