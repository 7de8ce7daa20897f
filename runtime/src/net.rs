//! TCP with owned buffers.

use std::future::poll_fn;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::buf::{IoBuf, IoBufMut};
use crate::op::{self, AcceptMulti, SharedFd};

/// A listening socket of this shard.
#[derive(Debug)]
pub struct TcpListener {
    fd: SharedFd,
    accept: AcceptMulti,
}

impl TcpListener {
    /// Listens on `address` with a socket of this shard's own: every shard may bind the same
    /// address, and the kernel spreads connections over them (SO_REUSEPORT). IPv6 addresses are
    /// IPv6's only.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = bound(address, true)?;
        socket.listen(1024)?;
        Ok(Self::from(std::net::TcpListener::from(socket)))
    }

    /// The next connection. The kernel goes on accepting between two calls.
    ///
    /// Cancelling is safe: a connection is returned by this call or the next.
    pub async fn accept(&mut self) -> io::Result<TcpStream> {
        let fd = poll_fn(|cx| self.accept.poll_next(cx)).await?;
        let stream = TcpStream { fd: Arc::new(fd) };
        // Fails only on a socket that is already gone, which the first read will tell.
        let _ = stream.socket().set_tcp_nodelay(true);
        Ok(stream)
    }

    /// The address listened on; tells the port when 0 was asked for.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        address(SockRef::from(&*self.fd).local_addr())
    }
}

impl From<std::net::TcpListener> for TcpListener {
    fn from(listener: std::net::TcpListener) -> Self {
        let fd: SharedFd = Arc::new(OwnedFd::from(listener));
        Self { accept: AcceptMulti::new(Arc::clone(&fd)), fd }
    }
}

/// A connection. Clones share the socket, so that one task may receive while another sends.
#[derive(Debug, Clone)]
pub struct TcpStream {
    fd: SharedFd,
}

impl TcpStream {
    /// Connects to `address`.
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        let fd: SharedFd = Arc::new(OwnedFd::from(socket));
        op::connect(Arc::clone(&fd), address.into()).await?;
        Ok(Self { fd })
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

    /// Closes one direction or both; what was sent before still arrives.
    pub async fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        op::shutdown(Arc::clone(&self.fd), how).await
    }

    /// The other end.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        address(self.socket().peer_addr())
    }

    /// The socket, for its options.
    pub fn socket(&self) -> SockRef<'_> {
        SockRef::from(&*self.fd)
    }
}

impl AsRawFd for TcpStream {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Checks, before shards bind it, that nobody listens on `address`, not even another process that
/// would share it. Port 0 becomes a free port.
pub fn check_free(wanted: SocketAddr) -> io::Result<SocketAddr> {
    let socket = bound(wanted, false)?;
    socket.listen(1)?;
    address(socket.local_addr())
}

fn bound(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn address(address: io::Result<socket2::SockAddr>) -> io::Result<SocketAddr> {
    address?.as_socket().ok_or_else(|| io::ErrorKind::Unsupported.into())
}
