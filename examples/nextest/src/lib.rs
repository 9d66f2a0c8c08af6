//! A counter in a file that everybody knows by its fixed path.

use std::path::Path;

/// Where it counts: a place of which a machine has one.
pub const FILE: &str = "/tmp/counter";

/// Adds one, and says how often it was asked.
///
/// # Errors
/// The file cannot be read or written.
pub fn count() -> std::io::Result<u64> {
    let before = match std::fs::read_to_string(Path::new(FILE)) {
        Ok(text) => text.trim().parse().unwrap_or(0),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    std::fs::write(FILE, (before + 1).to_string())?;
    Ok(before + 1)
}

#[cfg(test)]
mod tests {
    #[test]
    fn begins_at_one() {
        assert_eq!(super::count().expect("counted"), 1);
    }

    #[test]
    fn goes_on() {
        let counted: Vec<u64> = (0..3).map(|_| super::count().expect("counted")).collect();
        assert_eq!(counted, [1, 2, 3]);
    }
}
