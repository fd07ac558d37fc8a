# Two images from one file:
#
#   docker build --target runtime -t smartspec/runtime .            a replica: torch, transformers, the server
#   docker build --target operator -t smartspec/operator .          the controller: no torch
#
# TORCH_INDEX chooses the torch build, e.g. https://download.pytorch.org/whl/cpu for a small CPU image; unset, pip's own
# configuration decides, which usually means the CUDA build.
FROM docker.io/library/debian:bookworm-slim AS base
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 65532 --no-create-home --home-dir /cache --shell /usr/sbin/nologin smartspec \
    && python3 -m venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /app

FROM base AS operator
COPY pyproject.toml README.md LICENSE ./
COPY runtime runtime
COPY operator operator
RUN pip install '.[operator]'
USER 65532:65532
ENTRYPOINT ["smartspec-operator"]
CMD ["run", "--all-namespaces", "--probe-port", "8080"]

FROM base AS runtime
ARG TORCH_VERSION=2.13.0
ARG TORCH_INDEX=
# For the compiled forward on CPUs. Where CPUs are not served on, --build-arg COMPILER= leaves it out.
ARG COMPILER="g++ python3-dev"
RUN if [ -n "$COMPILER" ]; then \
        apt-get update && apt-get install -y --no-install-recommends $COMPILER && rm -rf /var/lib/apt/lists/*; \
    fi
# Torch first and by itself: the largest layer changes least.
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch==$TORCH_VERSION"
COPY pyproject.toml README.md LICENSE ./
COPY runtime runtime
COPY operator operator
RUN pip install '.[runtime]' && mkdir /cache && chown 65532:65532 /cache
ENV HOME=/cache HF_HOME=/cache/huggingface NUMBA_CACHE_DIR=/cache/numba
USER 65532:65532
EXPOSE 8000 8001
ENTRYPOINT ["smartspec"]
CMD ["serve", "--help"]
