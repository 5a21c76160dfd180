//! TCP sequence numbers (RFC 9293 §3.4): they wrap, so they have no total order and no `Ord`.

use std::ops::{Add, AddAssign, Sub};

/// A sequence number modulo 2^32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Seq(pub u32);

impl Seq {
    /// Whether `self` comes before `other` on the half circle that ends at `other`.
    pub fn precedes(self, other: Seq) -> bool {
        self.distance(other) > 0
    }

    /// Whether `self` is `other` or comes before it.
    pub fn at_or_before(self, other: Seq) -> bool {
        self.distance(other) >= 0
    }

    /// Signed steps from `self` forward to `other`, in -2^31 .. 2^31.
    pub fn distance(self, other: Seq) -> i32 {
        other.0.wrapping_sub(self.0).cast_signed()
    }

    /// The later of two numbers less than 2^31 apart.
    pub fn later(self, other: Seq) -> Seq {
        if self.precedes(other) { other } else { self }
    }

    /// The earlier of two numbers less than 2^31 apart.
    pub fn earlier(self, other: Seq) -> Seq {
        if self.precedes(other) { self } else { other }
    }
}

impl Add<u32> for Seq {
    type Output = Seq;
    fn add(self, rhs: u32) -> Seq {
        Seq(self.0.wrapping_add(rhs))
    }
}

impl AddAssign<u32> for Seq {
    fn add_assign(&mut self, rhs: u32) {
        *self = *self + rhs;
    }
}

impl Sub<u32> for Seq {
    type Output = Seq;
    fn sub(self, rhs: u32) -> Seq {
        Seq(self.0.wrapping_sub(rhs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_holds_across_the_wrap() {
        let before = Seq(0xffff_fff0);
        let after = before + 0x20;
        assert_eq!(after, Seq(0x10));
        assert!(before.precedes(after));
        assert!(!after.precedes(before));
        assert_eq!(before.distance(after), 0x20);
        assert_eq!(after.distance(before), -0x20);
        assert_eq!(before.later(after), after);
        assert_eq!(before.earlier(after), before);
    }

    #[test]
    fn a_number_neither_precedes_nor_follows_itself() {
        assert!(!Seq(7).precedes(Seq(7)));
        assert!(Seq(7).at_or_before(Seq(7)));
    }
}
