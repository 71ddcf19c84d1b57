# What the official entrypoint does with the variables that docker-compose.yml sets, and no more.
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" \
        --encoding=UTF8 --locale=C.UTF-8 --auth-local=trust --auth-host=scram-sha-256
    echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
    pg_ctl --wait -o "-c listen_addresses=" start
    createdb --username="$POSTGRES_USER" "$POSTGRES_DB" \
        || psql --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" --command="SELECT 1"
    pg_ctl --wait --mode=fast stop
fi
exec "$@" -c listen_addresses='*'
