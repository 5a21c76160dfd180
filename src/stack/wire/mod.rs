//! Wire formats: smoltcp's behind one door, plus what it lacks.
//!
//! smoltcp is imported here and nowhere else outside tests (D2).

pub use smoltcp::wire as formats;
