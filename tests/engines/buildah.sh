# buildah, rootless: `run` and `build` with the network of a helper found in PATH.
. "$(dirname "$0")/lib.sh"
configure_containers "$CONTRIB/containers.conf.d/tapway-slirp4netns.conf"
LAB_PATH=$HELPERS:/usr/bin:/bin:/usr/sbin:/sbin
as_lab buildah --version
container=$(as_lab buildah from --pull-never localhost/lab)

for isolation in default rootless; do
    options=(--isolation "$isolation")
    [ $isolation = default ] && options=()
    run() { as_lab buildah run "${options[@]}" "$container" -- sh -c "$1"; }
    container_checks "$isolation" run
done
as_lab buildah run "$container" -- sleep 10 &
sleeping=$!
until_true helper_runs
check "the helper" runs helper_runs
wait $sleeping
check "the helper ends with the command" gone helper_gone
as_lab buildah rm "$container" > /dev/null

mkdir -p "$WORK/build"
cat > "$WORK/build/Containerfile" << 'EOF'
FROM localhost/lab
RUN timeout 20 wget -qO /fetched http://203.0.113.10:8080/
EOF
chmod -R a+rX "$WORK/build"
build() {
    as_lab buildah build --layers=false --pull-never --tag built "$WORK/build" > /dev/null &&
        as_lab podman run --rm --network none localhost/built cat /fetched
}
check "a build fetches" 'outside$' build
finish
