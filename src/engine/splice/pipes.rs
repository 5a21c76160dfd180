//! Pipes for bytes on their way from one socket to another.
//!
//! A pipe is lent for as long as there are bytes in it. Connections whose receivers stand still
//! keep theirs, so they are counted; when none is left, bytes are copied instead.

/// Pipes of a worker: two descriptors each, and memory as far as they are filled.
const LIMIT: usize = 64;

/// Pipes, free or lent.
pub(in crate::engine) struct Pipes<P> {
    free: Vec<P>,
    lent: usize,
}

impl<P> Default for Pipes<P> {
    fn default() -> Self {
        Pipes { free: Vec::new(), lent: 0 }
    }
}

impl<P> Pipes<P> {
    /// Lends an empty pipe, if need be one that `make` gives; `None` at the limit, and where there
    /// is none to be had.
    pub(super) fn take(&mut self, make: impl FnOnce() -> std::io::Result<P>) -> Option<P> {
        let pipe = match self.free.pop() {
            Some(pipe) => pipe,
            None if self.lent >= LIMIT => return None,
            None => make().ok()?,
        };
        self.lent += 1;
        Some(pipe)
    }

    /// Takes back a pipe that is empty.
    pub(super) fn give_back(&mut self, pipe: P) {
        self.lent -= 1;
        self.free.push(pipe);
    }

    /// Closes a pipe that has bytes in it.
    pub(super) fn discard(&mut self, pipe: P) {
        self.lent -= 1;
        drop(pipe);
    }

    /// Whether [`Pipes::trim`] would close something.
    pub(in crate::engine) fn can_trim(&self) -> bool {
        !self.free.is_empty()
    }

    /// Closes what nobody uses.
    pub(in crate::engine) fn trim(&mut self) {
        self.free = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_are_used_again_and_are_not_more_than_the_limit() {
        let mut made = 0;
        let mut make = || {
            made += 1;
            Ok(made)
        };
        let mut pipes = Pipes::default();
        let first = pipes.take(&mut make).unwrap();
        pipes.give_back(first);
        let lent: Vec<_> = (0..LIMIT).map(|_| pipes.take(&mut make).unwrap()).collect();
        assert_eq!(lent.first(), Some(&first));
        assert!(pipes.take(&mut make).is_none());
        pipes.discard(lent[7]);
        assert!(pipes.take(|| Err(std::io::ErrorKind::OutOfMemory.into())).is_none());
        assert!(pipes.take(make).is_some());
        assert_eq!(made, LIMIT + 1);
    }
}
