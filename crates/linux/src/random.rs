//! Random bytes, for names that nobody else picks, and for keys.

use rustix::io::retry_on_intr;
use rustix::rand::{GetRandomFlags, getrandom};

/// So many random bytes, 256 at the most.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    const { assert!(N <= 256, "the kernel gives no more at once") };
    let mut bytes = [0; N];
    let given = retry_on_intr(|| getrandom(&mut bytes, GetRandomFlags::empty()));
    assert_eq!(given, Ok(N), "so few bytes are never refused nor cut short");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_others_each_time() {
        assert_ne!(random::<32>(), random::<32>());
    }
}
