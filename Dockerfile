# syntax=docker/dockerfile:1
# TRU V2 as a container image. Targets: cpu, and cuda (the default).
#
#   docker build --target cuda --tag tru-vlm:cuda .
#   docker build --target cpu --build-arg TORCH_INDEX=ADDRESS --tag tru-vlm:cpu .
#
# TORCH_INDEX is the address of a package index that has PyTorch's builds for CPUs; PyTorch's install page names one.
# Empty takes the build on the default index, which on x86-64 brings CUDA's libraries: it runs, but 4 GB larger.
# Wheels in a folder of your own are preferred: --build-context wheels=FOLDER.
ARG BASE_IMAGE=debian:trixie-slim

FROM scratch AS wheels
WORKDIR /empty

FROM ${BASE_IMAGE} AS base
# FFmpeg's libraries and Python's are torchcodec's; PyAV brings its own. Versions are those of the base image's release.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates ffmpeg python3 '^libpython3\.[0-9]+(t64)?$' tini \
    && rm -rf /var/lib/apt/lists/*

FROM base AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends gcc libc6-dev python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
# A build of Triton is made for its interpreter: both stages have the same one, and the environment the same path.
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml constraints.txt deploy/image/requirements.py ./
RUN python3 requirements.py pyproject.toml > requirements.txt && grep ^torch== constraints.txt > torch.txt

FROM build AS build-cpu
ARG TORCH_INDEX=
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=bind,from=wheels,target=/wheels \
    pip install --no-deps --find-links /wheels ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} --requirement torch.txt \
    && pip install --find-links /wheels --constraint constraints.txt --requirement requirements.txt
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip pip install --no-deps . && pip uninstall --yes pip

FROM build AS build-cuda
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=bind,from=wheels,target=/wheels \
    pip install --find-links /wheels --constraint constraints.txt --requirement requirements.txt
COPY deploy/image/triton_driver.py ./
RUN python3 triton_driver.py /opt/triton
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip pip install --no-deps . && pip uninstall --yes pip

FROM base AS server
LABEL org.opencontainers.image.title="TRU V2" \
      org.opencontainers.image.description="Ask a video a question: a self-hosted server for Qwen3-VL." \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 tru && useradd --uid 10001 --gid tru --no-create-home --home-dir /var/lib/tru-vlm tru \
    && install --directory --owner tru --group tru --mode 0750 /var/lib/tru-vlm /var/lib/tru-vlm/storage /models
COPY --chmod=0755 deploy/image/entrypoint.sh /usr/local/bin/entrypoint
COPY --chmod=0755 deploy/image/health_check.py /usr/local/bin/health_check.py
# All that the server writes is in STORAGE_DIR, HF_HOME, /dev/shm and /tmp: the root may be mounted read-only.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOST=0.0.0.0 \
    PORT=8000 \
    STORAGE_DIR=/var/lib/tru-vlm/storage \
    HF_HOME=/models \
    TRITON_CACHE_DIR=/tmp/triton
VOLUME ["/var/lib/tru-vlm/storage", "/models"]
WORKDIR /var/lib/tru-vlm
USER 10001:10001
EXPOSE 8000
# SIGTERM drains: give it 60 s more than DRAIN_SECONDS (docker stop --timeout, terminationGracePeriodSeconds).
STOPSIGNAL SIGTERM
# A large model takes minutes to load; until then the check may fail.
HEALTHCHECK --interval=15s --timeout=5s --start-period=15m --retries=3 \
    CMD ["python3", "/usr/local/bin/health_check.py"]
ENTRYPOINT ["/usr/bin/tini", "--", "/usr/local/bin/entrypoint"]
CMD ["tru-vlm"]

FROM server AS cpu
ENV DEVICE=cpu
COPY --from=build-cpu /opt/venv /opt/venv

FROM server AS cuda
# What the NVIDIA container runtime hands in: the cards, their driver, and its video decoder.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
COPY --from=build-cuda /opt/triton /opt/triton
COPY --from=build-cuda /opt/venv /opt/venv
