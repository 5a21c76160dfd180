# dockerd-rootless.sh over slirp4netns, found in PATH; both port drivers.
. "$(dirname "$0")/lib.sh"
LAB_PATH=$HELPERS:/usr/bin:/bin:/usr/sbin:/sbin
script=/usr/share/docker.io/contrib/dockerd-rootless.sh
make_image
docker() { as_lab DOCKER_HOST="unix:///run/user/$LAB_UID/docker.sock" docker "$@"; }
run() { docker run --rm lab sh -c "$1"; }

for driver in builtin slirp4netns; do
    as_lab DOCKERD_ROOTLESS_ROOTLESSKIT_NET=slirp4netns \
        DOCKERD_ROOTLESS_ROOTLESSKIT_PORT_DRIVER=$driver \
        $script --storage-driver=overlay2 > "/run/dockerd-$driver.log" 2>&1 &
    daemon=$!
    if ! until_true docker version; then
        check "$driver: dockerd starts" 'API listen' tail -n 20 "/run/dockerd-$driver.log"
        finish
    fi
    docker version --format "$driver: docker {{.Server.Version}}"
    docker import "$WORK/image.tar" lab > /dev/null
    container_checks "$driver" run
    word=docker-$driver
    docker run --detach --name web -p 18080:80 -p 127.0.0.1:18082:80 -p 18090:7001/udp \
        lab sh -c "$(serve $word)" > /dev/null
    until_served http://127.0.0.1:18080/ $word
    check "$driver: published, from the host" "^$word$" fetch http://127.0.0.1:18080/
    check "$driver: published, from outside" "^$word$" outside curl -s -m 20 http://203.0.113.1:18080/
    check "$driver: published at the loopback" "^$word$" fetch http://127.0.0.1:18082/
    check "$driver: and nowhere else" '^failed: 7$' outside \
        bash -c 'curl -s --max-time 20 http://203.0.113.1:18082/ || echo "failed: $?"'
    check "$driver: published UDP" '^ping$' udp 203.0.113.1 18090 outside
    check "$driver: the helper" runs helper_runs
    docker rm --force web > /dev/null
    check "$driver: the port is closed" '^failed: 7$' fetch http://127.0.0.1:18080/
    for process in $(pgrep -P $daemon); do kill "$process"; done
    wait $daemon 2> /dev/null
    check "$driver: the helper ends with the daemon" gone helper_gone
    for process in $(pgrep -u "$LAB_UID"); do kill -9 "$process" 2> /dev/null; done
done
finish
