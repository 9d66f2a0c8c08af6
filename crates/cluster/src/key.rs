//! SSH keys as OpenSSH writes them: made here, so that no node has to run `ssh-keygen`.

use crate::setup::KeyPair;
use crate::text::base64;

const KIND: &str = "ssh-ed25519";

/// A pair of key files, of an Ed25519 key that somebody else computed from `seed`.
#[must_use]
pub fn pair(seed: &[u8; 32], public: &[u8; 32], comment: &str) -> KeyPair {
    let mut known = Vec::new();
    put(&mut known, KIND.as_bytes());
    put(&mut known, public);
    let mut hidden = Vec::new();
    // The same number twice tells a reader that it has decrypted rightly; nothing is encrypted here.
    hidden.extend([0_u8; 8]);
    put(&mut hidden, KIND.as_bytes());
    put(&mut hidden, public);
    put(&mut hidden, &[seed.as_slice(), public].concat());
    put(&mut hidden, comment.as_bytes());
    for number in 1_u8.. {
        if hidden.len().is_multiple_of(8) {
            break;
        }
        hidden.push(number);
    }
    let mut file = b"openssh-key-v1\0".to_vec();
    for word in ["none", "none", ""] {
        put(&mut file, word.as_bytes());
    }
    file.extend(1_u32.to_be_bytes());
    put(&mut file, &known);
    put(&mut file, &hidden);
    let encoded = base64(&file);
    let lines: Vec<&str> = encoded.as_bytes().chunks(70).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    KeyPair {
        private: format!(
            "-----BEGIN OPENSSH PRIVATE KEY-----\n{}\n-----END OPENSSH PRIVATE KEY-----\n",
            lines.join("\n")
        ),
        public: format!("{KIND} {} {comment}\n", base64(&known)),
    }
}

/// A length and what has it.
fn put(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    to.extend(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_framed_as_openssh_does() {
        let pair = pair(&[1; 32], &[2; 32], "lab");
        assert!(pair.private.starts_with("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjE"));
        assert!(pair.private.lines().all(|line| line.len() <= 70));
        let words: Vec<&str> = pair.public.trim_end().split(' ').collect();
        assert_eq!((words[0], words[1].len(), words[2]), ("ssh-ed25519", 68, "lab"));
    }
}
