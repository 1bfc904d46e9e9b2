-- oldest-server: 0.1.0
-- Sign-ins of the admin page that were ended before they expired, so that every server refuses them.

CREATE TABLE {schema}.orisun_sign_out (
    -- a hash of the sign-in's random part: whoever reads this table learns no cookie
    sign_in  text PRIMARY KEY,
    ended_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TRIGGER orisun_grow_version AFTER INSERT ON {schema}.orisun_sign_out
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.orisun_grow_version('user');
