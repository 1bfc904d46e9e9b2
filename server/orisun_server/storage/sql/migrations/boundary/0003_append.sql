-- oldest-server: 0.1.0
-- An append function that finds the end of the log by the primary key, whatever the planner knows, and does less for a
-- lone call. The functions of 0001 and 0002 have other signatures and stay, for servers of before, until a later release
-- drops them.

-- Appends a group of calls in one statement, as if they were executed one after the other.
--
-- Events of all calls, in order: p_ids, p_types, p_data, p_metadata and p_last (the number of the last event of the
-- event's call). Calls: p_start (number of the first event), p_count (events), p_expected_commit and p_expected_prepare.
-- Numbers begin with 1. An array without elements may be NULL, which takes less time.
-- Contexts: the distinct criteria of the group are numbered, those of one shape together. For each shape there is an SQL
-- text (p_probes) that takes the values ($1, column by column, p_width columns) of its p_rows criteria ($2) and gives two
-- arrays, the latest positions; or, for one criterion that nothing matches, no row. Call p_use_call[i] has criterion
-- p_use_criterion[i], sorted by call; a call without criteria is not checked. Event p_match_event[i] matches criterion
-- p_match_criterion[i] that a later call uses, sorted by event.
--
-- Commands: p_command_call (the call's number, ascending) with p_command_id, p_command_type, p_command_data and
-- p_command_metadata; each is stored beside the events of its call, and not again with a repeat.
--
-- o_base alone is set when every call was appended: the global_id of the first event. Otherwise, for each call,
-- o_status is 0 (appended) or 1 (repeat of a stored call), both with the position of its last event; 2 (its context
-- changed) with the actual position; or 3 (duplicate event id), where o_prepare is the number of the event in its call,
-- from 0.
CREATE FUNCTION {q_append}(
    p_ids text[], p_types text[], p_data text[], p_metadata text[], p_last int[],
    p_start int[], p_count int[], p_expected_commit bigint[], p_expected_prepare bigint[],
    p_probes text[], p_width int[], p_rows int[], p_values text[],
    p_use_call int[], p_use_criterion int[], p_match_event int[], p_match_criterion int[], p_strip boolean,
    p_command_call int[], p_command_id text[], p_command_type text[], p_command_data text[], p_command_metadata text[],
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
    v_commands CONSTANT int := coalesce(array_length(p_command_call, 1), 0);
    v_now     timestamptz;
    v_stored  int[];
    v_commit  bigint[] := '{}';
    v_prepare bigint[] := '{}';
    v_c       bigint[];
    v_p       bigint[];
    v_first   bigint[];
    v_offset  int := 0;
    v_next    bigint;
    v_holds   boolean;
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

    FOR s IN 1 .. coalesce(array_length(p_probes, 1), 0) LOOP
        EXECUTE p_probes[s] INTO v_c, v_p
            USING p_values[v_offset + 1 : v_offset + p_width[s] * p_rows[s]], p_rows[s];
        v_commit := v_commit || coalesce(v_c, '{-1}');
        v_prepare := v_prepare || coalesce(v_p, '{-1}');
        v_offset := v_offset + p_width[s] * p_rows[s];
    END LOOP;

    -- Only this function touches the sequence, and only under the lock. It may lie behind the events where these came
    -- without it (logical replication, a load of data alone). ORDER BY, not max(): a session keeps the plan from when the
    -- log was as good as empty, and then to read all of an index looked as cheap as to read its end.
    SELECT greatest(CASE WHEN q.is_called THEN q.last_value + 1 ELSE q.last_value END,
                    (SELECT e.global_id + 1 FROM {q_events} AS e ORDER BY e.global_id DESC LIMIT 1))
    INTO v_next FROM {q_sequence} AS q;

    -- The usual case: every context holds and no id is stored yet, which the unique index tells at the insert itself.
    v_holds := v_matches = 0;
    IF v_holds AND v_uses = 1 THEN -- no statement, as a lone command needs none
        v_holds := v_commit[1] = p_expected_commit[p_use_call[1]] AND v_prepare[1] = p_expected_prepare[p_use_call[1]];
    ELSIF v_holds AND v_uses > 1 THEN
        v_holds := NOT EXISTS (
            SELECT 1 FROM unnest(p_use_call, p_use_criterion) AS x(call, criterion)
            GROUP BY x.call
            HAVING max(v_commit[x.criterion]) <> p_expected_commit[x.call]
                OR max(v_prepare[x.criterion]) <> p_expected_prepare[x.call]
        );
    END IF;
    IF v_holds THEN
        BEGIN
            INSERT INTO {q_events}
                (global_id, transaction_id, pg_transaction_id, event_id, event_type, data, metadata, date_created)
            SELECT v_next + e.n - 1, v_next + e.last, pg_current_xact_id(), e.id, e.type,
                   CASE WHEN p_strip THEN e.data::jsonb - 'eventType' ELSE e.data::jsonb END, e.metadata::jsonb, v_now
            FROM unnest(p_ids, p_types, p_data, p_metadata, p_last)
                 WITH ORDINALITY AS e(id, type, data, metadata, last, n);
            IF v_commands > 0 THEN
                INSERT INTO {q_commands}
                    (transaction_id, global_id, command_id, command_type, data, metadata, date_created)
                SELECT v_next + p_start[c.call] + p_count[c.call] - 1, v_next + p_start[c.call] + p_count[c.call] - 2,
                       c.id, c.type, c.data::jsonb, c.metadata::jsonb, v_now
                FROM unnest(p_command_call, p_command_id, p_command_type, p_command_data, p_command_metadata)
                     AS c(call, id, type, data, metadata);
            END IF;
            PERFORM setval('{q_sequence}', v_next + v_events - 1);
            o_base := v_next;
            RETURN;
        EXCEPTION WHEN unique_violation THEN
            NULL; -- some ids are stored already: each call gets its own answer below
        END;
    END IF;

    SELECT array_agg(DISTINCT width_bucket(i.n::int, p_start)) INTO v_stored
    FROM unnest(p_ids) WITH ORDINALITY AS i(id, n)
    CROSS JOIN LATERAL (SELECT 1 FROM {q_events} AS e WHERE e.event_id = i.id LIMIT 1) AS found;

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
        FROM (
            SELECT *, width_bucket(n::int, p_start) AS call
            FROM unnest(p_ids, p_types, p_data, p_metadata) WITH ORDINALITY AS i(id, type, data, metadata, n)
        ) AS e
        WHERE v_first[e.call] >= 0;
        IF v_commands > 0 THEN
            INSERT INTO {q_commands}
                (transaction_id, global_id, command_id, command_type, data, metadata, date_created)
            SELECT v_first[c.call] + p_count[c.call], v_first[c.call] + p_count[c.call] - 1,
                   c.id, c.type, c.data::jsonb, c.metadata::jsonb, v_now
            FROM unnest(p_command_call, p_command_id, p_command_type, p_command_data, p_command_metadata)
                 AS c(call, id, type, data, metadata)
            WHERE v_first[c.call] >= 0;
        END IF;
        PERFORM setval('{q_sequence}', v_next - 1);
    END IF;
END
$append$;
