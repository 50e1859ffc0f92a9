# Attune on an NVIDIA GPU: the profiles gpu and tensorrt, by the tritonserver of NVIDIA's image.
#
#   make image-gpu                                                       # attune:gpu
#   docker build --file docker/gpu.Dockerfile --tag attune:gpu --build-arg TRITON_IMAGE=nvcr.io/...@sha256:... .
#   attune serve --profile gpu                                           # prints the command that builds and starts it
#
# NOT RUN YET: where this was written neither NVIDIA's images nor a GPU could be had. hadolint reads it, and tests hold
# what it names against the sources. What has to be looked at first: whether the server's Python takes NumPy 2, and
# whether CTranslate2 finds the libraries of CUDA 12.
#
# It needs BuildKit. Models are exported before (`attune export --profile gpu`) and mounted at /models: engines of
# TensorRT are built on the GPU that serves them, and MusicGen's weights may not be passed on by everybody. Arguments:
#   TRITON_IMAGE   release 26.07 or newer, which has the fixes of the bulletins; better by its digest
#   COMPILER       gcc: MusicGen's kernels are compiled when it starts, which needs a C compiler and Python's headers.
#                  Without it, as it is, PyTorch's operations do the same at less than half the speed
# Secrets as in embedded.Dockerfile.

ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:26.11-py3

FROM ${TRITON_IMAGE} AS build
SHELL ["/bin/sh", "-eu", "-c"]
# Since 25.08 the image has CUDA 13, and CTranslate2 4.8.5 opens libcublas.so.12: it gets one of its own. The
# alternative, should both not go together: speech_to_text on the CPU (KIND_CPU, compute_type int8 in its gpu.pbtxt).
ARG CUBLAS=12.9.1.4
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_FIND_LINKS=/wheels PIP_CONSTRAINT=/src/constraints.txt
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
# The versions are in constraints.txt.
# hadolint ignore=DL3013
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=certificates,target=/etc/ssl/certs/ca-certificates.crt \
    --mount=type=bind,source=docker/wheels,target=/wheels \
    mkdir client ensemble export training; \
    python3 -m pip install --only-binary=:all: --target=/opt/attune '.[client,models,musicgen]'; \
    python3 -m pip install --only-binary=:all: --no-deps --target=/opt/cuda12 "nvidia-cublas-cu12==$CUBLAS"
COPY client client
COPY ensemble ensemble
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=certificates,target=/etc/ssl/certs/ca-certificates.crt \
    python3 -m pip install --no-deps --upgrade --target=/opt/attune .

FROM build AS bill
ARG CYCLONEDX=7.5.0
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=certificates,target=/etc/ssl/certs/ca-certificates.crt \
    PIP_CONSTRAINT='' python3 -m pip install --only-binary=:all: --target=/opt/bill "cyclonedx-bom==$CYCLONEDX"; \
    python3 -m pip freeze --path /opt/attune --path /opt/cuda12 > installed.txt; \
    PYTHONPATH=/opt/bill python3 -m cyclonedx_py requirements --output-reproducible --output-file /sbom.cdx.json \
        installed.txt

FROM ${TRITON_IMAGE}
SHELL ["/bin/sh", "-eu", "-c"]
ARG TRITON_IMAGE
ARG COMPILER=
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="Attune" \
      org.opencontainers.image.description="Speech in, therapeutic music out: the profiles gpu and tensorrt" \
      org.opencontainers.image.licenses="Apache-2.0 AND CC-BY-SA-4.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED" \
      org.opencontainers.image.base.name="$TRITON_IMAGE" \
      music.attune.profile="gpu" \
      music.attune.models="volume" \
      music.attune.sbom="/usr/share/attune/sbom.cdx.json"
# hadolint ignore=DL3008
RUN apt-get update; \
    apt-get install --yes --no-install-recommends tini ${COMPILER:+"$COMPILER" libc6-dev python3-dev}; \
    rm -rf /var/lib/apt/lists/*; \
    mkdir /models
COPY --from=build /opt/attune /opt/attune
COPY --from=build /opt/cuda12 /opt/cuda12
COPY --from=bill /sbom.cdx.json /usr/share/attune/sbom.cdx.json
COPY LICENSE /usr/share/attune/LICENSE
COPY --chmod=755 docker/healthcheck.py /usr/local/bin/healthcheck
# The server's Python is the image's own, and so finds what was installed beside it.
ENV PYTHONPATH=/opt/attune \
    LD_LIBRARY_PATH=/opt/cuda12/nvidia/cublas/lib:$LD_LIBRARY_PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000 8001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 CMD ["healthcheck"]
ENTRYPOINT ["tini", "--", "python3", "-m", "attune_client", "serve", "--profile", "gpu", "--repository", "/models", \
            "--host", "0.0.0.0", "--log-format", "json", "--log-file", "/dev/stdout"]
