//! Streams, over TCP and Unix sockets, with owned buffers.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use socket2::{Domain, Protocol, SockAddr, SockFilter, SockRef, Socket, Type};

use crate::buf::{IoBuf, IoBufMut};
use crate::op::{self, AcceptMulti, SharedFd};

/// Where somebody listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// A socket in the filesystem.
    Unix(PathBuf),
}

impl Address {
    fn to_socket(&self) -> io::Result<SockAddr> {
        match self {
            Self::Tcp(address) => Ok((*address).into()),
            Self::Unix(path) => SockAddr::unix(path),
        }
    }

    fn from_socket(address: &SockAddr) -> io::Result<Self> {
        let unix = || address.as_pathname().map(|path| Self::Unix(path.to_owned()));
        // A socket for both families calls 192.0.2.1 ::ffff:192.0.2.1.
        let tcp =
            |socket: SocketAddr| Self::Tcp((socket.ip().to_canonical(), socket.port()).into());
        let address = address.as_socket().map(tcp).or_else(unix);
        address.ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    fn is_tcp(&self) -> bool {
        matches!(self, Self::Tcp(_))
    }

    fn open(&self) -> io::Result<Socket> {
        let (domain, protocol) = match self {
            Self::Tcp(address) => (Domain::for_address(*address), Some(Protocol::TCP)),
            Self::Unix(_) => (Domain::UNIX, None),
        };
        Socket::new(domain, Type::STREAM, protocol)
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl From<&Self> for Address {
    fn from(address: &Self) -> Self {
        address.clone()
    }
}

/// `IP:PORT`, `[IPv6]:PORT` or `unix:PATH`.
impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("unix:") {
            Some("") => Err("a path has to follow unix:"),
            Some(path) => Ok(Self::Unix(path.into())),
            None => text.parse().map(Self::Tcp).map_err(|_| "neither IP:PORT nor unix:PATH"),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Takes back what [`Listener::ignore_new`] has done to a socket, here or in another process that had it.
pub fn hear_new(socket: impl AsFd) {
    // An error: there is nothing to take back.
    let _ = SockRef::from(&socket).detach_filter();
}

/// A listening socket of this shard.
#[derive(Debug)]
pub struct Listener {
    fd: SharedFd,
    accept: AcceptMulti,
}

impl Listener {
    /// Listens on `address` with a socket of this shard's own. Every shard may bind the same IP
    /// address, and the kernel spreads connections over them (SO_REUSEPORT). IPv6 addresses are
    /// IPv6's only.
    pub fn bind(address: impl Into<Address>) -> io::Result<Self> {
        bind(&address.into(), true).map(Self::from)
    }

    /// A socket that listens and that other shards accept from too: they take turns. (Who asks the
    /// kernel for all connections at once stays the first in line for each.)
    pub fn shared(fd: OwnedFd) -> Self {
        let fd: SharedFd = Arc::new(fd);
        Self { accept: AcceptMulti::new(Arc::clone(&fd), false), fd }
    }

    /// The next connection. The kernel goes on accepting between two calls.
    ///
    /// Cancelling is safe: a connection is returned by this call or the next.
    pub async fn accept(&mut self) -> io::Result<Stream> {
        poll_fn(|cx| self.accept.poll_next(cx)).await.map(Stream::accepted)
    }

    /// From here on the kernel does not hear who begins to connect over TCP, and who has begun may go on.
    /// Who is not heard asks again, a second later at first: is the listener closed by then, they are
    /// refused. The others would be reset if it were closed at once. Whoever else has this socket is deaf
    /// too.
    pub fn ignore_new(&self) -> io::Result<()> {
        /// Where the flags are in a TCP header, and which is SYN (RFC 9293, section 3.1).
        const FLAGS: u32 = 13;
        const SYN: u32 = 0x02;
        let operation = |code: u32, jump_if_equal, k| {
            let code = u16::try_from(code).expect("of 16 bits");
            SockFilter::new(code, jump_if_equal, 0, k)
        };
        SockRef::from(&*self.fd).attach_filter(&[
            operation(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, FLAGS),
            operation(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, SYN),
            operation(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 0),
            operation(libc::BPF_RET | libc::BPF_K, 0, 0),
            operation(libc::BPF_RET | libc::BPF_K, 0, u32::MAX),
        ])
    }

    /// Stops listening on this shard, and says who was accepted before and not taken yet. Others who
    /// have the socket go on.
    pub async fn close(mut self) -> Vec<Stream> {
        let mut streams = Vec::new();
        self.accept.stop();
        while let Some(fd) = poll_fn(|cx| self.accept.poll_left(cx)).await {
            streams.push(Stream::accepted(fd));
        }
        streams
    }

    /// The address listened on; tells the port when 0 was asked for.
    pub fn local_addr(&self) -> io::Result<Address> {
        local_addr(&*self.fd)
    }
}

/// A socket that listens, of this shard alone.
impl From<OwnedFd> for Listener {
    fn from(fd: OwnedFd) -> Self {
        let fd: SharedFd = Arc::new(fd);
        Self { accept: AcceptMulti::new(Arc::clone(&fd), true), fd }
    }
}

/// A connection. Clones share the socket, so that one task may receive while another sends.
#[derive(Debug, Clone)]
pub struct Stream {
    fd: SharedFd,
}

impl Stream {
    /// Connects to `address`.
    pub async fn connect(address: impl Into<Address>) -> io::Result<Self> {
        let address = address.into();
        let socket = address.open()?;
        if address.is_tcp() {
            socket.set_tcp_nodelay(true)?;
        }
        let fd: SharedFd = Arc::new(OwnedFd::from(socket));
        op::connect(Arc::clone(&fd), address.to_socket()?).await?;
        Ok(Self { fd })
    }

    fn accepted(fd: OwnedFd) -> Self {
        let stream = Self { fd: Arc::new(fd) };
        // Fails on Unix sockets, which do not wait anyway, and on a socket that is already gone,
        // which the first read will tell.
        let _ = stream.socket().set_tcp_nodelay(true);
        stream
    }

    /// Receives into the buffer's room; 0 when the peer has closed its side, or there is no room.
    pub async fn recv<B: IoBufMut>(&self, buffer: B) -> (io::Result<usize>, B) {
        op::recv(Arc::clone(&self.fd), buffer).await
    }

    /// Sends the whole buffer.
    pub async fn send_all<B: IoBuf>(&self, buffer: B) -> (io::Result<()>, B) {
        let (mut buffer, mut from) = (buffer, 0);
        while from < buffer.bytes().len() {
            let (result, back) = op::send(Arc::clone(&self.fd), buffer, from).await;
            buffer = back;
            match result {
                Ok(len) => from += len,
                Err(error) => return (Err(error), buffer),
            }
        }
        (Ok(()), buffer)
    }

    /// Closes one direction or both; what was sent before still arrives. Nothing waits here: not by the
    /// ring, which hands every shutdown to a thread of the kernel (`io_shutdown_prep`).
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.socket().shutdown(how)
    }

    /// The other end. A Unix socket that connects has no address, mostly.
    pub fn peer_addr(&self) -> io::Result<Address> {
        Address::from_socket(&self.socket().peer_addr()?)
    }

    /// Our end.
    pub fn local_addr(&self) -> io::Result<Address> {
        local_addr(&*self.fd)
    }

    /// The socket, for its options.
    pub fn socket(&self) -> SockRef<'_> {
        SockRef::from(&*self.fd)
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Checks, before shards bind it, that nobody listens on `wanted`, not even another process that
/// would share it. Port 0 becomes a free port.
pub fn check_free(wanted: &Address) -> io::Result<Address> {
    local_addr(&bind(wanted, false)?)
}

/// A socket that listens on `address`; `shared`: others may bind the same IP address, if theirs are
/// shared too. Where nobody listens on a Unix socket any more, it is replaced.
pub fn bind(address: &Address, shared: bool) -> io::Result<OwnedFd> {
    let socket = address.open()?;
    match address {
        Address::Tcp(ip) => {
            socket.set_reuse_address(true)?;
            socket.set_reuse_port(shared)?;
            if ip.is_ipv6() {
                socket.set_only_v6(true)?;
            }
        }
        Address::Unix(path) => {
            // A socket refuses who connects if nobody listens, and so does any other file. One whose
            // backlog is full would keep us waiting.
            let client = address.open()?;
            client.set_nonblocking(true)?;
            let left = client.connect(&address.to_socket()?);
            let is_socket =
                || path.symlink_metadata().is_ok_and(|file| file.file_type().is_socket());
            if left.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
                && is_socket()
            {
                std::fs::remove_file(path)?;
            }
        }
    }
    socket.bind(&address.to_socket()?)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Connections that wait to be accepted; the system cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Where a socket listens, or is bound.
pub fn local_addr(socket: &impl AsFd) -> io::Result<Address> {
    Address::from_socket(&SockRef::from(socket).local_addr()?)
}
