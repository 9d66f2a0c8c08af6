//! Passwords as `/etc/shadow` has them: SHA-512 crypt. Made here, so that no password ever is in a node.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha512};

/// Passwords of a cluster for tests are guessed by nobody who could not have read them: the least number of rounds.
const ROUNDS: usize = 1000;

const ALPHABET: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The hash of a password, with a salt out of these random bits.
#[must_use]
pub fn hash(password: &str, salt: u64) -> String {
    let salt: String = (0..8).map(|place| ALPHABET[(salt >> (6 * place)) as usize & 63] as char).collect();
    with_salt(password.as_bytes(), &salt)
}

fn with_salt(password: &[u8], salt: &str) -> String {
    let digest = |parts: &[&[u8]]| {
        let mut hasher = Sha512::new();
        parts.iter().for_each(|part| hasher.update(part));
        hasher.finalize()
    };
    let repeated = |digest: &[u8], length: usize| -> Vec<u8> { digest.iter().copied().cycle().take(length).collect() };
    let salted = salt.as_bytes();
    let other = digest(&[password, salted, password]);
    let mut first = Sha512::new();
    first.update(password);
    first.update(salted);
    first.update(repeated(&other, password.len()));
    let mut bits = password.len();
    while bits > 0 {
        if bits & 1 == 1 {
            first.update(other)
        } else {
            first.update(password)
        }
        bits >>= 1;
    }
    let mut sum = first.finalize();
    let mut hasher = Sha512::new();
    (0..password.len()).for_each(|_| hasher.update(password));
    let of_password = repeated(&hasher.finalize(), password.len());
    let mut hasher = Sha512::new();
    (0..16 + usize::from(sum[0])).for_each(|_| hasher.update(salted));
    let of_salt = repeated(&hasher.finalize(), salted.len());
    for round in 0..ROUNDS {
        let mut hasher = Sha512::new();
        if round % 2 == 1 {
            hasher.update(&of_password)
        } else {
            hasher.update(sum)
        }
        if round % 3 != 0 {
            hasher.update(&of_salt);
        }
        if round % 7 != 0 {
            hasher.update(&of_password);
        }
        if round % 2 == 1 {
            hasher.update(sum)
        } else {
            hasher.update(&of_password)
        }
        sum = hasher.finalize();
    }
    format!("$6$rounds={ROUNDS}${salt}${}", encoded(&sum))
}

/// Three bytes at a time from three thirds of the sum, which change places each time.
fn encoded(sum: &[u8]) -> String {
    let mut text = String::new();
    let mut put = |bits: u32, letters: usize| {
        for place in 0..letters {
            let _ = write!(text, "{}", ALPHABET[(bits >> (6 * place)) as usize & 63] as char);
        }
    };
    let byte = |place: usize| u32::from(sum[place]);
    let (mut a, mut b, mut c) = (0, 21, 42);
    for _ in 0..21 {
        put(byte(a) << 16 | byte(b) << 8 | byte(c), 4);
        (a, b, c) = (b + 1, c + 1, a + 1);
    }
    put(byte(63), 2);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_other_programs() {
        // By `openssl passwd -6 -salt 'rounds=1000$roundstoolow'` and, of an empty one's neighbour, mkpasswd.
        assert_eq!(with_salt(PASSWORD.as_bytes(), "roundstoolow"), EXPECTED);
        assert_ne!(hash("secret", 1), hash("secret", 2));
        assert!(hash("secret", u64::MAX).starts_with("$6$rounds=1000$zzzzzzzz$"));
    }

    const PASSWORD: &str = "the minimum number is still observed";
    const EXPECTED: &str = "$6$rounds=1000$roundstoolow$kUMsbe306n21p9R.FRkW3IGn.S9NPN0x50YhH1xhLsPuWGsUSklZt58jaTfF4ZEQpyUNGc0dqbpBYYBaHHrsX.";
}
