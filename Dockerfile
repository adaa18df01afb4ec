# One image for every role of the service; docker-compose.yml says which command each container runs.
# A tag moves: pin the base of an installation by digest, python@sha256:... (docs/operating.md, Containers).
ARG BASE=python:3.12-slim-bookworm
FROM ${BASE}

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    WCL_DATA_DIR=/data

RUN groupadd --system --gid 10001 wcl \
    && useradd --system --uid 10001 --gid wcl --home-dir /app --no-create-home wcl \
    && mkdir -p /app /data \
    && chown wcl:wcl /app /data \
    && chmod 700 /data

WORKDIR /app

# The locked requirements first: they change far less often than the code, and they are most of the image.
COPY requirements-runtime.lock ./
RUN pip install --require-hashes -r requirements-runtime.lock

COPY pyproject.toml README.md LICENSE ./
COPY wcl_core ./wcl_core
COPY jobs ./jobs
COPY api ./api
COPY worker ./worker
COPY wcl_client ./wcl_client
COPY migrations ./migrations
# The image has no history of its own: docker build --build-arg WCL_COMMIT="$(git rev-parse HEAD)"
ARG WCL_COMMIT=
RUN printf '%s' "${WCL_COMMIT}" > wcl_core/commit.txt \
    && pip install --no-deps --no-build-isolation -e .

USER 10001
VOLUME ["/data"]
EXPOSE 8000
STOPSIGNAL SIGTERM
CMD ["python", "-m", "api"]
