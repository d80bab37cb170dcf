# syntax=docker/dockerfile:1

# A static binary in an image that holds nothing else.
FROM rust:1.95-alpine AS build
RUN apk add --no-cache musl-dev
WORKDIR /src

# The dependencies first: they change less often than the code, and take longer to build.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src benches && echo 'fn main() {}' | tee src/main.rs benches/gate.rs && touch src/lib.rs \
    && cargo build --release --locked --bin tidegate \
    && rm -r src

COPY src src
# cargo looks at times of modification, and those of the stand-ins are newer than the sources.
RUN find src -type f -exec touch {} + \
    && cargo build --release --locked --bin tidegate

FROM scratch
COPY --from=build /src/target/release/tidegate /tidegate
COPY LICENSE-MIT LICENSE-APACHE /licenses/

# Nobody in particular; there is no user database in here.
USER 65532:65532

# The admin side listens on the container's own loopback interface, where the health check finds it.
# For Prometheus, or the kubelet, to reach it: TIDEGATE_ADMIN=0.0.0.0:9180.
EXPOSE 8080 9180
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 CMD ["/tidegate", "healthcheck"]
ENTRYPOINT ["/tidegate"]
CMD ["run"]
