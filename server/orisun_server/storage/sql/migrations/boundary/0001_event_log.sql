-- oldest-server: 0.1.0
-- The event log of one boundary, the function that appends to it, and the checkpoints of who reads it.

CREATE SEQUENCE {q_sequence} AS bigint MINVALUE 0 START 0 NO CYCLE;

CREATE TABLE {q_events} (
    global_id         bigint PRIMARY KEY,
    -- logical: last global_id of the request + 1, so that it survives dump, restore and failover
    transaction_id    bigint NOT NULL,
    -- PostgreSQL's own, for whoever looks into the database
    pg_transaction_id xid8 NOT NULL,
    event_id          text COLLATE "C" NOT NULL,
    event_type        text COLLATE "C" NOT NULL,
    data              jsonb NOT NULL,
    metadata          jsonb NOT NULL,
    date_created      timestamptz NOT NULL,
    CONSTRAINT {event_id_index} UNIQUE (event_id)
);

ALTER SEQUENCE {q_sequence} OWNED BY {q_events}.global_id;

-- Where the publisher stands; the epoch is that of the lease under which it was written.
CREATE TABLE {q_published} (
    boundary       text PRIMARY KEY,
    transaction_id bigint NOT NULL DEFAULT -1,
    global_id      bigint NOT NULL DEFAULT -1,
    event_count    bigint NOT NULL DEFAULT 0,
    epoch          bigint NOT NULL DEFAULT 0,
    updated_at     timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE {q_checkpoints} (
    name             text PRIMARY KEY,
    commit_position  bigint NOT NULL DEFAULT -1,
    prepare_position bigint NOT NULL DEFAULT -1,
    updated_at       timestamptz NOT NULL DEFAULT now()
);

-- Appends a group of calls in one statement, as if they were executed one after the other.
--
-- Events of all calls, in order: p_ids, p_types, p_data, p_metadata, p_event_call (the call's number, from 1) and
-- p_last (the number of the call's last event). Calls: p_start (number of the first event), p_count (events),
-- p_expected_commit and p_expected_prepare.
-- Contexts: the distinct criteria of the group are numbered from 1, those of one shape together. For each shape there is
-- an SQL text (p_probes) that takes the values ($1, column by column, p_width columns) of its p_rows criteria ($2) and
-- gives two arrays, the latest positions. Call p_use_call[i] has criterion p_use_criterion[i], sorted by call; a call
-- without criteria is not checked. Event p_match_event[i] matches criterion p_match_criterion[i] that a later call
-- uses, sorted by event.
--
-- o_base alone is set when every call was appended: the global_id of the first event. Otherwise, for each call,
-- o_status is 0 (appended) or 1 (repeat of a stored call), both with the position of its last event; 2 (its context
-- changed) with the actual position; or 3 (duplicate event id), where o_prepare is the number of the event in its call,
-- from 0.
CREATE FUNCTION {q_append}(
    p_ids text[], p_types text[], p_data text[], p_metadata text[], p_event_call int[], p_last int[],
    p_start int[], p_count int[], p_expected_commit bigint[], p_expected_prepare bigint[],
    p_probes text[], p_width int[], p_rows int[], p_values text[],
    p_use_call int[], p_use_criterion int[], p_match_event int[], p_match_criterion int[], p_strip boolean,
    OUT o_base bigint, OUT o_status smallint[], OUT o_commit bigint[], OUT o_prepare bigint[]
)
LANGUAGE plpgsql VOLATILE
-- plans must not depend on how full the table was when a session first used the function
SET enable_seqscan = off
SET jit = off
SET plan_cache_mode = auto
AS $append$
DECLARE
    v_events  CONSTANT int := array_length(p_ids, 1);
    v_calls   CONSTANT int := array_length(p_start, 1);
    v_uses    CONSTANT int := coalesce(array_length(p_use_call, 1), 0);
    v_matches CONSTANT int := coalesce(array_length(p_match_event, 1), 0);
    v_now     timestamptz;
    v_stored  int[];
    v_commit  bigint[] := '{}';
    v_prepare bigint[] := '{}';
    v_c       bigint[];
    v_p       bigint[];
    v_first   bigint[];
    v_offset  int := 0;
    v_next    bigint;
    v_checked boolean;
    v_outcome smallint;
    v_actual_commit  bigint;
    v_actual_prepare bigint;
    c int;
    k int;
    u int := 1;
    m int := 1;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'events are appended under read committed only, not under %',
            current_setting('transaction_isolation') USING ERRCODE = 'invalid_transaction_state';
    END IF;

    -- A statement of its own: what follows sees all that was committed before the lock was given.
    PERFORM pg_catalog.pg_advisory_xact_lock({lock_key});
    v_now := clock_timestamp();

    SELECT array_agg(DISTINCT i.call) INTO v_stored
    FROM unnest(p_ids, p_event_call) AS i(id, call)
    CROSS JOIN LATERAL (SELECT 1 FROM {q_events} AS e WHERE e.event_id = i.id LIMIT 1) AS found;

    FOR s IN 1 .. coalesce(array_length(p_probes, 1), 0) LOOP
        EXECUTE p_probes[s] INTO v_c, v_p
            USING p_values[v_offset + 1 : v_offset + p_width[s] * p_rows[s]], p_rows[s];
        v_commit := v_commit || v_c;
        v_prepare := v_prepare || v_p;
        v_offset := v_offset + p_width[s] * p_rows[s];
    END LOOP;

    -- Only this function touches the sequence, and only under the lock. It may lie behind the events where these came
    -- without it (logical replication, a load of data alone).
    SELECT greatest(CASE WHEN q.is_called THEN q.last_value + 1 ELSE q.last_value END,
                    (SELECT max(e.global_id) + 1 FROM {q_events} AS e))
    INTO v_next FROM {q_sequence} AS q;

    IF v_stored IS NULL AND v_matches = 0 AND (v_uses = 0 OR NOT EXISTS (
        SELECT 1 FROM unnest(p_use_call, p_use_criterion) AS x(call, criterion)
        GROUP BY x.call
        HAVING max(v_commit[x.criterion]) <> p_expected_commit[x.call]
            OR max(v_prepare[x.criterion]) <> p_expected_prepare[x.call]
    )) THEN
        o_base := v_next;
        INSERT INTO {q_events}
            (global_id, transaction_id, pg_transaction_id, event_id, event_type, data, metadata, date_created)
        SELECT v_next + e.n - 1, v_next + e.last, pg_current_xact_id(), e.id, e.type,
               CASE WHEN p_strip THEN e.data::jsonb - 'eventType' ELSE e.data::jsonb END, e.metadata::jsonb, v_now
        FROM unnest(p_ids, p_types, p_data, p_metadata, p_last) WITH ORDINALITY AS e(id, type, data, metadata, last, n);
        PERFORM setval('{q_sequence}', v_next + v_events - 1);
        RETURN;
    END IF;

    o_status := array_fill(0::smallint, ARRAY[v_calls]);
    o_commit := array_fill(-1::bigint, ARRAY[v_calls]);
    o_prepare := array_fill(-1::bigint, ARRAY[v_calls]);
    v_first := array_fill(-1::bigint, ARRAY[v_calls]);
    o_base := v_next;

    FOR c IN 1 .. v_calls LOOP
        v_checked := false;
        v_actual_commit := -1;
        v_actual_prepare := -1;
        WHILE u <= v_uses AND p_use_call[u] = c LOOP
            k := p_use_criterion[u];
            IF v_prepare[k] > v_actual_prepare THEN
                v_actual_commit := v_commit[k];
                v_actual_prepare := v_prepare[k];
            END IF;
            v_checked := true;
            u := u + 1;
        END LOOP;

        IF c = ANY (v_stored) THEN
            -- A repeat is the whole of one stored call: same ids, order and content.
            SELECT CASE WHEN bool_and(coalesce(x.same, false)) AND min(x.transaction_id) = max(x.transaction_id)
                         AND bool_and(x.global_id = x.transaction_id - 1 - p_count[c] + x.n)
                         AND NOT EXISTS (SELECT 1 FROM {q_events} AS b
                                         WHERE b.global_id = min(x.transaction_id) - p_count[c] - 1
                                           AND b.transaction_id = min(x.transaction_id))
                        THEN 1 ELSE 3 END,
                   min(x.transaction_id),
                   coalesce(min(x.n) FILTER (WHERE NOT x.same), min(x.n) FILTER (WHERE x.same)) - 1
            INTO v_outcome, v_actual_commit, v_actual_prepare
            FROM (
                SELECT i.n, e.transaction_id, e.global_id,
                       e.event_type = i.type AND e.data = i.data::jsonb - 'eventType' AND e.metadata = i.metadata::jsonb
                           AS same
                FROM unnest(p_ids[p_start[c] : p_start[c] + p_count[c] - 1],
                            p_types[p_start[c] : p_start[c] + p_count[c] - 1],
                            p_data[p_start[c] : p_start[c] + p_count[c] - 1],
                            p_metadata[p_start[c] : p_start[c] + p_count[c] - 1])
                     WITH ORDINALITY AS i(id, type, data, metadata, n)
                LEFT JOIN LATERAL (SELECT * FROM {q_events} AS s WHERE s.event_id = i.id LIMIT 1) AS e ON true
            ) AS x;
            o_status[c] := v_outcome;
            o_commit[c] := v_actual_commit;
            o_prepare[c] := CASE v_outcome WHEN 1 THEN v_actual_commit - 1 ELSE v_actual_prepare END;
        ELSIF v_checked AND (v_actual_commit <> p_expected_commit[c] OR v_actual_prepare <> p_expected_prepare[c]) THEN
            o_status[c] := 2;
            o_commit[c] := v_actual_commit;
            o_prepare[c] := v_actual_prepare;
        ELSE
            v_first[c] := v_next;
            v_next := v_next + p_count[c];
            o_commit[c] := v_next;
            o_prepare[c] := v_next - 1;
        END IF;

        -- Later calls of the group see what this one appended.
        WHILE m <= v_matches AND p_match_event[m] < p_start[c] + p_count[c] LOOP
            IF v_first[c] >= 0 THEN
                k := p_match_criterion[m];
                v_commit[k] := v_next;
                v_prepare[k] := v_first[c] + p_match_event[m] - p_start[c];
            END IF;
            m := m + 1;
        END LOOP;
    END LOOP;

    IF v_next > o_base THEN
        INSERT INTO {q_events}
            (global_id, transaction_id, pg_transaction_id, event_id, event_type, data, metadata, date_created)
        SELECT v_first[e.call] + e.n - p_start[e.call], v_first[e.call] + p_count[e.call], pg_current_xact_id(),
               e.id, e.type, CASE WHEN p_strip THEN e.data::jsonb - 'eventType' ELSE e.data::jsonb END,
               e.metadata::jsonb, v_now
        FROM unnest(p_ids, p_types, p_data, p_metadata, p_event_call) WITH ORDINALITY
             AS e(id, type, data, metadata, call, n)
        WHERE v_first[e.call] >= 0;
        PERFORM setval('{q_sequence}', v_next - 1);
    END IF;
END
$append$;
