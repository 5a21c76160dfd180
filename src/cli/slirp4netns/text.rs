//! What slirp4netns says: its help, its version, its greeting.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::Path;

use super::Cidr;

/// The version whose behaviour this is.
const VERSION: &str = "1.3.3";

/// What `--help` prints, and what follows most mistakes.
pub(super) const USAGE: &str = "\
Usage: slirp4netns [OPTION]... PID|PATH|FD [TAPNAME]
A network for an unprivileged network namespace (served by tapway).

-c, --configure          bring the interface up, with address and default route
-e, --exit-fd=FD         end when the other side of this descriptor is closed
-r, --ready-fd=FD        write to this descriptor when the network is there
-m, --mtu=MTU            MTU of the interface (default=1500, max=65521)
-6, --enable-ipv6        IPv6 as well as IPv4
-a, --api-socket=PATH    serve the API on this Unix socket
--cidr=CIDR              IPv4 network of the guest (default=10.0.2.0/24)
--disable-host-loopback  keep the host's 127.0.0.1:* out of reach
--netns-type=TYPE        what the target is ([path|pid|tapfd], default=pid)
--userns-path=PATH       user namespace of the target
--enable-sandbox         see no files but /etc and /run (and keep CAP_NET_BIND_SERVICE alone)
--enable-seccomp         do without dangerous system calls
--outbound-addr=IPv4     address or interface to send IPv4 from
--outbound-addr6=IPv6    address or interface to send IPv6 from
--disable-dns            no DNS at 10.0.2.3 (or where --cidr puts it)
--macaddress=MAC         MAC address of the interface (only with -c)
--target-type=TYPE       kind of target ([netns|bess], default=netns)
-h, --help               print this text and exit
-v, --version            print the version and exit
";

/// What `--version` prints. Its callers know features by the numbers: those of libslirp tell that
/// outbound addresses and `--disable-dns` work.
pub(super) fn version() -> String {
    format!(
        "slirp4netns version {VERSION}\ncommit: tapway-{}\nlibslirp: 4.8.0\n\
         SLIRP_CONFIG_VERSION_MAX: 5\nlibseccomp: 2.5.4\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// What it says of itself when the guest's link is there.
pub(super) struct Greeting<'a> {
    pub(super) mtu: u16,
    pub(super) network: Cidr<Ipv4Addr>,
    pub(super) api_socket: Option<&'a Path>,
    /// Whether the guest can reach the host's loopback.
    pub(super) host_loopback: bool,
}

impl fmt::Display for Greeting<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |offset| Ipv4Addr::from(u32::from(self.network.address) + offset);
        let mask = Ipv4Addr::from(u32::MAX << (32 - u32::from(self.network.prefix)));
        writeln!(f, "Starting slirp")?;
        writeln!(f, "* MTU:             {}", self.mtu)?;
        writeln!(f, "* Network:         {}", self.network.address)?;
        writeln!(f, "* Netmask:         {mask}")?;
        writeln!(f, "* Gateway:         {}", at(2))?;
        writeln!(f, "* DNS:             {}", at(3))?;
        writeln!(f, "* DHCP begin:      {}", at(15))?;
        writeln!(f, "* DHCP end:        {}", at(30))?;
        writeln!(f, "* Recommended IP:  {}", at(100))?;
        if let Some(path) = self.api_socket {
            writeln!(f, "* API Socket:      {}", path.display())?;
        }
        if self.host_loopback {
            writeln!(
                f,
                "WARNING: 127.0.0.1:* on the host is accessible as {} (set \
                 --disable-host-loopback to prohibit connecting to 127.0.0.1:*)",
                at(2)
            )?;
        }
        Ok(())
    }
}
