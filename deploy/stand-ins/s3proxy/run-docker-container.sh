#!/bin/sh
# Starts S3Proxy with settings from the environment: S3PROXY_AUTHORIZATION is s3proxy.authorization,
# JCLOUDS_FILESYSTEM_BASEDIR is jclouds.filesystem.basedir, and so on for the settings that tests use.
set -eu
mkdir -p "$JCLOUDS_FILESYSTEM_BASEDIR"
properties=$(mktemp)
cat >"$properties" <<END
s3proxy.endpoint=$S3PROXY_ENDPOINT
s3proxy.authorization=$S3PROXY_AUTHORIZATION
s3proxy.identity=$S3PROXY_IDENTITY
s3proxy.credential=$S3PROXY_CREDENTIAL
s3proxy.ignore-unknown-headers=$S3PROXY_IGNORE_UNKNOWN_HEADERS
jclouds.provider=$JCLOUDS_PROVIDER
jclouds.identity=unused
jclouds.credential=unused
jclouds.filesystem.basedir=$JCLOUDS_FILESYSTEM_BASEDIR
END
# $S3PROXY_JAVA_OPTS holds several options.
# shellcheck disable=SC2086
exec java ${S3PROXY_JAVA_OPTS:-} -DLOG_LEVEL="$LOG_LEVEL" -cp '/opt/s3proxy:/opt/s3proxy/libs/*' org.gaul.s3proxy.Main --properties "$properties"
