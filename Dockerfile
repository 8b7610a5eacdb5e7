# docs/container.md describes how to run the image.
# An exact version; scripts/pin-images.sh adds the digest.
FROM golang:1.26.8 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
# The image is built without the repository, so the version comes from outside.
ARG VERSION
RUN test -n "$VERSION" || { echo 'name the version: docker build --build-arg VERSION="$(scripts/version.sh)" -t watchword .' >&2; exit 1; }
# Static, because the image from scratch has no C library.
RUN CGO_ENABLED=0 go build -trimpath -tags grpcnotrace -ldflags="-s -w -X github.com/watchword-auth/watchword/internal/version.stamped=$VERSION" -o /out/ ./cmd/watchword ./cmd/watchword-ext-authz \
	&& mkdir /out/data

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/watchword /watchword
# For Envoy: docs/ext-authz.md.
COPY --from=build /out/watchword-ext-authz /watchword-ext-authz
# A new volume gets the owner and the mode of the folder at the mount point. The folder is
# for the group 0: OpenShift runs the image as a user with an arbitrary number in group 0.
COPY --from=build --chown=65532:0 --chmod=0770 /out/data /data
USER 65532:0
WORKDIR /data
VOLUME /data

# Listens on all addresses, for other containers. Off loopback, the server starts only
# with WATCHWORD_TLS_CERT and WATCHWORD_TLS_KEY, or with WATCHWORD_INSECURE=true.
ENV WATCHWORD_GRPC_ADDR=0.0.0.0:50051 \
	WATCHWORD_HTTP_ADDR=0.0.0.0:8080 \
	WATCHWORD_DATASTORE_URI=sqlite:/data/watchword.db
EXPOSE 50051 8080

# Calls the server at WATCHWORD_ADDR (default 127.0.0.1:50051), over TLS unless
# WATCHWORD_PLAINTEXT=true.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s CMD ["/watchword", "healthcheck"]

ENTRYPOINT ["/watchword"]
CMD ["serve"]
