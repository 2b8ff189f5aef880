//! The wire that other tests cut.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use crate::servers::cut::Wire;
use crate::servers::{ADMIN, Postgres, client};

/// Longer than bytes take here, short enough to wait for nothing.
const NOTHING_COMES: Duration = Duration::from_millis(100);

/// A server that says back what it is told, and goodbye when it is told goodbye.
fn echo() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let say_back = move || {
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..read]).is_err() {
                        return;
                    }
                }
                let _ = stream.write_all(b"bye");
            };
            std::thread::Builder::new().spawn(say_back).unwrap();
        }
    };
    std::thread::Builder::new().spawn(serve).unwrap();
    port
}

fn connect(wire: &Wire) -> TcpStream {
    TcpStream::connect((Ipv4Addr::LOCALHOST, wire.port())).unwrap()
}

fn say(stream: &mut TcpStream, text: &[u8]) -> Vec<u8> {
    stream.write_all(text).unwrap();
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).unwrap();
    answer
}

#[test]
fn bytes_pass_and_are_counted() {
    let wire = Wire::to(echo());
    let mut stream = connect(&wire);
    assert_eq!(say(&mut stream, b"hello"), b"hello");
    let large: Vec<u8> = (0..1_000_000u32).map(|n| n as u8).collect();
    let mut back = vec![0; large.len()];
    std::thread::scope(|scope| {
        let mut writer = stream.try_clone().unwrap();
        let all = &large;
        std::thread::Builder::new().spawn_scoped(scope, move || writer.write_all(all).unwrap()).unwrap();
        stream.read_exact(&mut back).unwrap();
    });
    assert!(back == large);
    assert_eq!((wire.bytes(), wire.connections(), wire.accepted()), ((1_000_005, 1_000_005), 1, 1));
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "bye");
}

#[test]
fn a_cut_ends_all_connections_and_lets_new_ones_in() {
    let wire = Wire::to(echo());
    let mut streams = [connect(&wire), connect(&wire)];
    for stream in &mut streams {
        say(stream, b"x");
    }
    wire.cut();
    for stream in &mut streams {
        assert!(matches!(stream.read(&mut [0; 8]), Ok(0) | Err(_)));
    }
    assert_eq!(wire.connections(), 0);
    assert_eq!(say(&mut connect(&wire), b"again"), b"again");
}

#[test]
fn a_cut_comes_in_the_middle_of_an_answer() {
    let wire = Wire::to(echo());
    let mut stream = connect(&wire);
    wire.cut_after(7);
    stream.write_all(b"hello world").unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert_eq!(answer, b"hello w");
    assert_eq!(say(&mut connect(&wire), b"hello world"), b"hello world");
}

#[test]
fn a_stall_holds_bytes_and_loses_none() {
    let wire = Wire::to(echo());
    let mut stream = connect(&wire);
    say(&mut stream, b"x");
    wire.stall();
    stream.write_all(b"late").unwrap();
    stream.set_read_timeout(Some(NOTHING_COMES)).unwrap();
    let error = stream.read(&mut [0; 8]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
    stream.set_read_timeout(None).unwrap();
    wire.flow();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"late");
    // A cut ends a stalled connection too.
    wire.stall();
    stream.write_all(b"never").unwrap();
    wire.cut();
    assert!(matches!(stream.read(&mut [0; 8]), Ok(0) | Err(_)));
}

#[test]
fn a_refusing_wire_keeps_what_is_open() {
    let wire = Wire::to(echo());
    let mut stream = connect(&wire);
    say(&mut stream, b"x");
    for _ in 0..3 {
        wire.refuse();
        let error = TcpStream::connect((Ipv4Addr::LOCALHOST, wire.port())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert_eq!(say(&mut stream, b"still"), b"still");
        wire.accept();
        assert_eq!(say(&mut connect(&wire), b"again"), b"again");
    }
}

#[test]
fn a_client_of_a_real_server_is_cut() {
    let server = Postgres::shared();
    let wire = Wire::to(server.port());
    let mut command = Postgres::plain_client(wire.port(), ADMIN, "postgres");
    assert_eq!(client::run(&mut command, b"select 7;"), Ok(b"7\n".to_vec()));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"\\echo here\n").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 5]).unwrap();
    wire.cut();
    stdin.write_all(b"select 1;\n").unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("server closed the connection"), "{output:?}");
}
