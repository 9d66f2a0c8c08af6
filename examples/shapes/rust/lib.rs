//! Tests as Rust has them: functions in modules of one program.

#[cfg(test)]
mod port {
    use std::net::TcpListener;

    // Both would clash on one machine; each has a loopback of its own.
    #[test]
    fn is_free_for_one() {
        TcpListener::bind("127.0.0.1:8080").expect("nobody else is here");
    }

    #[test]
    fn is_free_for_another() {
        TcpListener::bind("127.0.0.1:8080").expect("nobody else is here");
    }
}

#[cfg(test)]
mod file {
    #[test]
    fn can_be_written_anywhere() {
        let path = "/tmp/of-this-test";
        assert!(!std::path::Path::new(path).exists());
        std::fs::write(path, "here").expect("written");
        assert_eq!(std::fs::read_to_string(path).expect("read"), "here");
    }
}

#[test]
fn adds_up() {
    assert_eq!((1..=10).sum::<i32>(), 55);
}
