//! The protocol as bytes. Readers take all that has come so far, and say whether it is enough.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::VERSION;
use crate::gate::forward::{PortRange, Transport};
use crate::gate::table::{Caps, MAX_RULES, Table, TableRule};

/// What a server says first.
const MAGIC: [u8; 8] = *b"basil:s\0";

/// Room for the name of a table, its final zero included.
const NAME_SIZE: usize = 128;

/// Room for the name of an interface, its final zero included (`IFNAMSIZ`).
const INTERFACE_SIZE: usize = 16;

/// The most tables that a server has: more than there are kinds.
const MAX_TABLES: usize = 16;

/// Bytes of the longest rule.
const RULE_SIZE: usize = 56;

/// Bytes of the longest greeting.
pub(super) const MAX_GREETING: usize =
    HELLO_SIZE + MAX_TABLES * (9 + NAME_SIZE + MAX_RULES * RULE_SIZE) + 1;

/// Bytes of the longest update.
pub(super) const MAX_UPDATE: usize = MAX_TABLES * (5 + MAX_RULES * RULE_SIZE) + 1;

/// Flags of a rule.
const ANY: u8 = 1;
const WEAK: u8 = 2;
const SCAN: u8 = 4;

/// A table and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PifTable {
    /// Its number: [`super::HOST`], [`super::SPLICE`], or what a later server has.
    pub pif: u8,
    /// Its name: at most 127 bytes.
    pub name: String,
    /// Its rules.
    pub table: Table,
}

/// What a server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Greeting {
    pub(super) version: u32,
    pub(super) tables: Vec<PifTable>,
}

/// Why bytes are none of the protocol, in the original's words where it has some.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Not such a socket.
    #[error("Bad magic number from server")]
    Magic,
    /// A newer server.
    #[error("Unknown server protocol version {0} > {VERSION}")]
    Newer(u32),
    /// Version 0.
    #[error("Unsupported experimental server protocol")]
    Experimental,
    /// Names of another size.
    #[error("Server has unexpected pif name size ({0} not {NAME_SIZE})")]
    NameSize(u32),
    /// Interface names of another size.
    #[error("Server has unexpected IFNAMSIZ ({0} not {INTERFACE_SIZE})")]
    InterfaceSize(u32),
    /// A name without end.
    #[error("Interface name was not NULL terminated")]
    Unterminated,
    /// A table twice.
    #[error("Received duplicate interface identifier")]
    Duplicate,
    /// More rules than a table holds.
    #[error("Too many forwarding rules")]
    TooManyRules,
    /// More tables than there can be.
    #[error("Too many forwarding tables")]
    TooManyTables,
    /// A rule that says nothing.
    #[error("a forwarding rule makes no sense: {0}")]
    Rule(&'static str),
}

/// Bytes from the front of what has come.
struct Input<'a>(&'a [u8]);

/// The bytes end before the message does.
struct Incomplete;

/// Why reading does not go on.
enum Stop {
    Incomplete,
    Wrong(WireError),
}

impl From<Incomplete> for Stop {
    fn from(_: Incomplete) -> Stop {
        Stop::Incomplete
    }
}

impl From<WireError> for Stop {
    fn from(error: WireError) -> Stop {
        Stop::Wrong(error)
    }
}

impl<'a> Input<'a> {
    fn bytes<const N: usize>(&mut self) -> Result<&'a [u8; N], Incomplete> {
        let (front, rest) = self.0.split_first_chunk().ok_or(Incomplete)?;
        self.0 = rest;
        Ok(front)
    }

    fn u8(&mut self) -> Result<u8, Incomplete> {
        self.bytes().map(|[byte]| *byte)
    }

    fn u16(&mut self) -> Result<u16, Incomplete> {
        self.bytes().map(|bytes| u16::from_be_bytes(*bytes))
    }

    fn u32(&mut self) -> Result<u32, Incomplete> {
        self.bytes().map(|bytes| u32::from_be_bytes(*bytes))
    }

    fn rules(&mut self, version: u32) -> Result<Vec<TableRule>, Stop> {
        let count = self.u32()?;
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if count > MAX_RULES {
            return Err(WireError::TooManyRules.into());
        }
        (0..count).map(|_| self.rule(version)).collect()
    }

    fn rule(&mut self, version: u32) -> Result<TableRule, Stop> {
        let listen = address(self.bytes()?);
        let target =
            if version > 1 { address(self.bytes()?) } else { Ipv6Addr::UNSPECIFIED.into() };
        let interface = name(self.bytes::<INTERFACE_SIZE>()?)?;
        let (first, last, to) = (self.u16()?, self.u16()?, self.u16()?);
        let (transport, flags) = (self.u8()?, self.u8()?);
        let wrong = |what| Stop::Wrong(WireError::Rule(what));
        let transport = match transport {
            6 => Transport::Tcp,
            17 => Transport::Udp,
            _ => return Err(wrong("its transport is neither TCP nor UDP")),
        };
        let ports = PortRange::new(first, last).ok_or_else(|| wrong("its ports are no range"))?;
        let target_ports = to.checked_add(last - first).and_then(|end| PortRange::new(to, end));
        let target_ports = target_ports.ok_or_else(|| wrong("its target ports are no range"))?;
        if flags & !(ANY | WEAK | SCAN) != 0 {
            return Err(wrong("its flags are unknown"));
        }
        let listen = match (flags & ANY != 0, listen) {
            (false, address) => Some(address),
            (true, IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => None,
            (true, _) => return Err(wrong("it listens at one address and at all")),
        };
        Ok(TableRule {
            transport,
            listen,
            interface: (!interface.is_empty()).then_some(interface),
            ports,
            target: Some(target).filter(|target| !target.is_unspecified()),
            target_ports,
            weak: flags & WEAK != 0,
            scan: flags & SCAN != 0,
        })
    }
}

fn address(bytes: &[u8; 16]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from_octets(*bytes)).to_canonical()
}

/// A name that ends with a zero. What follows it does not count.
fn name(bytes: &[u8]) -> Result<String, WireError> {
    let end = bytes.iter().position(|&byte| byte == 0).ok_or(WireError::Unterminated)?;
    Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
}

fn complete<T>(read: Result<T, Stop>) -> Result<Option<T>, WireError> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(Stop::Incomplete) => Ok(None),
        Err(Stop::Wrong(error)) => Err(error),
    }
}

/// Bytes of a hello.
pub(super) const HELLO_SIZE: usize = 20;

/// Reads what a server says; `None` while that is not complete.
pub(super) fn read_greeting(bytes: &[u8]) -> Result<Option<Greeting>, WireError> {
    complete(greeting(&mut Input(bytes)))
}

fn greeting(input: &mut Input<'_>) -> Result<Greeting, Stop> {
    let magic: &[u8; 8] = input.bytes()?;
    let (version, name_size, interface_size) = (input.u32()?, input.u32()?, input.u32()?);
    if *magic != MAGIC {
        return Err(WireError::Magic.into());
    }
    match version {
        0 => return Err(WireError::Experimental.into()),
        1..=VERSION => {}
        _ => return Err(WireError::Newer(version).into()),
    }
    if usize::try_from(name_size) != Ok(NAME_SIZE) {
        return Err(WireError::NameSize(name_size).into());
    }
    if usize::try_from(interface_size) != Ok(INTERFACE_SIZE) {
        return Err(WireError::InterfaceSize(interface_size).into());
    }
    let mut tables: Vec<PifTable> = Vec::new();
    loop {
        let pif = input.u8()?;
        if pif == 0 {
            return Ok(Greeting { version, tables });
        }
        let name = name(input.bytes::<NAME_SIZE>()?)?;
        let caps = Caps(input.u32()?);
        if tables.iter().any(|other| other.pif == pif) {
            return Err(WireError::Duplicate.into());
        }
        if tables.len() >= MAX_TABLES {
            return Err(WireError::TooManyTables.into());
        }
        let rules = input.rules(version)?;
        tables.push(PifTable { pif, name, table: Table::received(caps, rules) });
    }
}

/// What a client wants: tables by their numbers.
pub(super) type Update = Vec<(u8, Vec<TableRule>)>;

/// Reads what a client of our version says; `None` while that is not complete.
pub(super) fn read_update(bytes: &[u8]) -> Result<Option<Update>, WireError> {
    complete(update(&mut Input(bytes)))
}

fn update(input: &mut Input<'_>) -> Result<Update, Stop> {
    let mut tables: Update = Vec::new();
    loop {
        let pif = input.u8()?;
        if pif == 0 {
            return Ok(tables);
        }
        if tables.iter().any(|(other, _)| *other == pif) {
            return Err(WireError::Duplicate.into());
        }
        if tables.len() >= MAX_TABLES {
            return Err(WireError::TooManyTables.into());
        }
        tables.push((pif, input.rules(VERSION)?));
    }
}

/// What the server says.
pub(super) fn write_greeting(tables: &[PifTable]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    for number in [VERSION, NAME_SIZE as u32, INTERFACE_SIZE as u32] {
        out.extend(number.to_be_bytes());
    }
    for PifTable { pif, name, table } in tables {
        out.push(*pif);
        push_name::<NAME_SIZE>(&mut out, name);
        out.extend(table.caps().0.to_be_bytes());
        push_rules(&mut out, table.rules(), VERSION);
    }
    out.push(0);
    out
}

/// What a client says to a server of `version`.
pub(super) fn write_update(tables: &[PifTable], version: u32) -> Vec<u8> {
    let mut out = Vec::new();
    for PifTable { pif, table, .. } in tables {
        out.push(*pif);
        push_rules(&mut out, table.rules(), version);
    }
    out.push(0);
    out
}

fn push_rules(out: &mut Vec<u8>, rules: &[TableRule], version: u32) {
    // A table has at most 255 rules, and a server's listing is cut to as many.
    let rules = &rules[..rules.len().min(MAX_RULES)];
    out.extend((rules.len() as u32).to_be_bytes());
    for rule in rules {
        push_rule(out, rule, version);
    }
}

fn push_rule(out: &mut Vec<u8>, rule: &TableRule, version: u32) {
    out.extend(octets(rule.listen.unwrap_or(Ipv6Addr::UNSPECIFIED.into())));
    if version > 1 {
        out.extend(octets(rule.target.unwrap_or(Ipv6Addr::UNSPECIFIED.into())));
    }
    push_name::<INTERFACE_SIZE>(out, rule.interface.as_deref().unwrap_or_default());
    for port in [rule.ports.first(), rule.ports.last(), rule.target_ports.first()] {
        out.extend(port.to_be_bytes());
    }
    out.push(match rule.transport {
        Transport::Tcp => 6,
        Transport::Udp => 17,
    });
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    out.push(flag(rule.listen.is_none(), ANY) | flag(rule.weak, WEAK) | flag(rule.scan, SCAN));
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => Ipv4Addr::to_ipv6_mapped(&v4).octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// `name` and zeros; what does not fit is cut off.
fn push_name<const N: usize>(out: &mut Vec<u8>, name: &str) {
    let mut room = [0; N];
    let length = name.len().min(N - 1);
    room[..length].copy_from_slice(&name.as_bytes()[..length]);
    out.extend(room);
}
