# Attune on a CPU: the packaged server, the models and their Python in one image. It fetches nothing when it starts.
#
#   make image                      # builds attune:cpu, with the models that `make export` has placed
#   docker build --file docker/embedded.Dockerfile --tag attune:cpu .    # exports them in the build (about 6 GB more)
#   docker run --rm --read-only --tmpfs=/tmp --cap-drop=ALL --shm-size=1g --publish=127.0.0.1:8001:8001 attune:cpu
#
# It needs BuildKit. Arguments of the build:
#   BASE_IMAGE   Debian 12 or newer, or a slim Python 3.11 to 3.13 on it; a tag, or better a digest
#   MODELS       export: `attune export` runs in the build; context: those in model_repository/, exported before;
#                volume: none, they are mounted at /models (the target `exporter` fills such a volume)
#   VERSION, REVISION, CREATED    of the labels
# Secrets of the build, both optional: `pip_conf` (pip's configuration: which index) and `certificates` (a bundle).
# Wheels in docker/wheels come before those of the index.

ARG BASE_IMAGE=debian:bookworm-slim
ARG MODELS=export

# What runs needs: Python with its shared library, and a first process that reaps what others leave.
FROM ${BASE_IMAGE} AS base
SHELL ["/bin/sh", "-eu", "-c"]
# Versions of Debian's packages are the base image's to pin, by its digest.
# hadolint ignore=DL3008
RUN --mount=type=bind,source=ensemble/attune_ensemble/serving/launcher/interpreter.py,target=/tmp/interpreter.py \
    apt-get update; \
    apt-get install --yes --no-install-recommends tini; \
    command -v python3 || apt-get install --yes --no-install-recommends python3; \
    library=$(PYTHONPATH=/tmp python3 -B -c "import interpreter as i; print(i.find_library() or i.package_of_library())"); \
    test -e "$library" || apt-get install --yes --no-install-recommends "$library"; \
    rm -rf /var/lib/apt/lists/*

# The environment of whoever serves: pinned wheels, and the packaged server as it is started.
FROM base AS build
# hadolint ignore=DL3008,DL3009
RUN python3 -c 'import ensurepip' || { apt-get update; apt-get install --yes --no-install-recommends python3-venv; }
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_FIND_LINKS=/wheels PIP_CONSTRAINT=/src/constraints.txt
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
# First the requirements alone, which change seldom: a distribution without packages.
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=certificates,target=/etc/ssl/certs/ca-certificates.crt \
    --mount=type=bind,source=docker/wheels,target=/wheels \
    mkdir client ensemble export training; \
    python3 -m venv /opt/attune; \
    /opt/attune/bin/pip install --only-binary=:all: '.[serve]'
COPY client client
COPY ensemble ensemble
COPY export/attune_weights export/attune_weights
ENV XDG_CACHE_HOME=/opt/attune/cache
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=certificates,target=/etc/ssl/certs/ca-certificates.crt \
    --mount=type=bind,source=docker/wheels,target=/wheels \
    /opt/attune/bin/pip install --no-deps --force-reinstall .; \
    /opt/attune/bin/python -m attune_ensemble.serving.launcher.layout /opt/attune/server

# What exports. As an image of its own it fills a volume with models.
FROM build AS exporter
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=certificates,target=/etc/ssl/certs/ca-certificates.crt \
    --mount=type=bind,source=docker/wheels,target=/wheels \
    /opt/attune/bin/pip install --only-binary=:all: '.[train]'
COPY training training
COPY export export
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=certificates,target=/etc/ssl/certs/ca-certificates.crt \
    --mount=type=bind,source=docker/wheels,target=/wheels \
    /opt/attune/bin/pip install --no-deps --force-reinstall .
COPY model_repository /configurations
RUN find /configurations -mindepth 1 ! -type d ! -name '*.pbtxt' ! -path '*/1/model.py' ! -name .gitkeep -delete; \
    find /configurations -mindepth 3 -depth -type d -empty -delete; \
    mkdir /models; chown 10001:10001 /models
COPY --chmod=755 docker/export.sh /usr/local/bin/export-models
ENV PATH=/opt/attune/bin:$PATH HOME=/tmp XDG_CACHE_HOME=/tmp/cache PIP_FIND_LINKS=
USER 10001:10001
ENTRYPOINT ["tini", "--", "export-models"]

FROM exporter AS models-export
# Secrets are root's to read; of this stage nothing runs later.
# hadolint ignore=DL3002
USER 0:0
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=certificates,target=/etc/ssl/certs/ca-certificates.crt \
    export-models; \
    rm -rf /tmp/cache

FROM base AS models-context
COPY model_repository /models

FROM base AS models-volume
RUN mkdir /models

# hadolint ignore=DL3006
FROM models-${MODELS} AS models

# What is in the image: Debian's packages, Python's, the packaged server, the weights.
FROM build AS bill
ARG CYCLONEDX=7.5.0
COPY docker/bill.py /src/bill.py
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=certificates,target=/etc/ssl/certs/ca-certificates.crt \
    --mount=type=bind,from=base,source=/var/lib/dpkg,target=/dpkg \
    --mount=type=bind,from=models,source=/models,target=/models \
    PIP_CONSTRAINT='' python3 -m venv /opt/bill; \
    PIP_CONSTRAINT='' /opt/bill/bin/pip install --only-binary=:all: "cyclonedx-bom==$CYCLONEDX"; \
    /opt/attune/bin/pip uninstall --yes pip; \
    /opt/bill/bin/cyclonedx-py environment --output-reproducible --output-file /tmp/python.json /opt/attune/bin/python; \
    /opt/attune/bin/python bill.py /tmp/python.json /dpkg/status /models > /sbom.cdx.json; \
    /opt/bill/bin/python -c "from cyclonedx.schema import SchemaVersion as S; \
from cyclonedx.validation.json import JsonStrictValidator as V; \
raise SystemExit(V(S.V1_6).validate_str(open('/sbom.cdx.json').read()))"

FROM base
ARG BASE_IMAGE
ARG MODELS
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="Attune" \
      org.opencontainers.image.description="Speech in, therapeutic music out: the embedded profile, on a CPU" \
      org.opencontainers.image.licenses="Apache-2.0 AND CC-BY-SA-4.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED" \
      org.opencontainers.image.base.name="$BASE_IMAGE" \
      music.attune.profile="embedded" \
      music.attune.models="$MODELS" \
      music.attune.sbom="/usr/share/attune/sbom.cdx.json"
# With the environment comes no pip: nothing is installed when a container starts.
COPY --from=bill /opt/attune /opt/attune
COPY --from=models /models /models
COPY --from=bill /sbom.cdx.json /usr/share/attune/sbom.cdx.json
COPY LICENSE /usr/share/attune/LICENSE
COPY --chmod=755 docker/healthcheck.py /usr/local/bin/healthcheck
ENV PATH=/opt/attune/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    XDG_CACHE_HOME=/opt/attune/cache \
    ATTUNE_SERVER_LAYOUT=/opt/attune/server
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000 8001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 CMD ["healthcheck"]
# The events on standard error, what Triton and the models write on standard output. What is said after the image's name
# is added, and counts where it differs.
ENTRYPOINT ["tini", "--", "attune", "serve", "--repository", "/models", "--host", "0.0.0.0", "--private-network", \
            "--log-format", "json", "--log-file", "/dev/stdout"]
