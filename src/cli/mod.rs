//! The command line: argv to [`Draft`] to [`Config`].
//!
//! Native commands and [`slirp4netns`] are parsed into a [`Draft`], which remembers what was typed
//! and nothing else. [`resolve()`] is a pure function of the draft and of [`HostFacts`]. [`pasta`],
//! whose guests are made after the host's own interface, has a draft and a `resolve` of its own.
//! All end in the one [`Config`], which has nothing left to check and consists of the options of
//! each room (design decision D11). No system call happens here, except in [`show`] and [`pesto`],
//! which speak to running instances, and where [`slirp4netns`] looks for files while it reads its
//! options.
//!
//! [`HostFacts`]: crate::setup::HostFacts
#![forbid(unsafe_code)]

pub mod complete;
mod config;
mod draft;
pub mod getopt;
pub mod native;
pub mod pasta;
pub mod personality;
pub mod pesto;
mod publish;
mod resolve;
pub mod show;
pub mod slirp4netns;
pub mod table_spec;
mod value;

pub use config::{Action, Config, DnsOptions, ForwardOptions, LogOptions};
pub use draft::{Draft, DraftTarget, DraftThreads};
pub use publish::{ExposeSpec, PublishSpec, SpecError, parse_rules};
pub use resolve::{ConfigError, resolve};
pub use value::{AddedHost, Cidr, DnsChoice, HostTarget, ParseValueError, Switch};
