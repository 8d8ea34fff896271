# The one binary, with ONNX Runtime beside it. docker-compose.yml starts a cluster of it.
FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin modelmeter

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 python3-pip \
    && pip3 install --no-cache-dir --break-system-packages onnxruntime \
    && apt-get purge -y python3-pip && apt-get autoremove -y && rm -rf /var/lib/apt/lists/* \
    && ln -s "$(find / -xdev -name 'libonnxruntime.so.*' -print -quit)" /usr/local/lib/libonnxruntime.so \
    && useradd --create-home --uid 10001 modelmeter \
    && install -d -o modelmeter /var/lib/modelmeter
COPY --from=build /src/target/release/modelmeter /usr/local/bin/modelmeter
ENV MODELMETER_HOME=/var/lib/modelmeter \
    ORT_DYLIB_PATH=/usr/local/lib/libonnxruntime.so
USER modelmeter
VOLUME /var/lib/modelmeter
ENTRYPOINT ["modelmeter"]
