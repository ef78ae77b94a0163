//! Work inside a network namespace, from a thread that ends with it.
//!
//! Called by [`super::net`]. No shared thread ever changes its namespace: what
//! it did next would happen to an instance.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use futures_util::StreamExt as _;
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use super::net::{NetError, index_of, netlink, step, to_io};
use super::process;

/// The loopback interface's index in every namespace.
const LOOPBACK: u32 = 1;

/// Makes a network namespace that has a loopback interface and nothing else.
///
/// # Errors
/// [`NetError::Step`].
pub async fn lone_namespace() -> Result<OwnedFd, NetError> {
    let netns = in_thread(make_namespace).await?;
    let inner = netns.try_clone().map_err(step("hold a network namespace"))?;
    in_thread(move || {
        in_namespace(inner, async |handle| {
            let up = LinkUnspec::new_with_index(LOOPBACK).up().build();
            handle.link().set(up).execute().await.map_err(netlink("set an interface up"))
        })
    })
    .await?;
    Ok(netns)
}

/// Connects to 127.0.0.1 inside a network namespace.
///
/// # Errors
/// As `connect` answers.
pub async fn connect_in(netns: BorrowedFd<'_>, port: u16) -> io::Result<tokio::net::TcpStream> {
    let inner = netns.try_clone_to_owned()?;
    let connect = move || {
        enter(&inner)?;
        let stream = std::net::TcpStream::connect(("127.0.0.1", port)).map_err(step("connect"))?;
        stream.set_nonblocking(true).map_err(step("connect"))?;
        Ok(stream)
    };
    match in_thread(connect).await {
        Ok(stream) => tokio::net::TcpStream::from_std(stream),
        Err(NetError::Step { source, .. }) => Err(source),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// The index of an interface that must be there.
pub(super) async fn inside(handle: &Handle, name: &str) -> Result<u32, NetError> {
    let missing = || step("find an interface inside")(io::ErrorKind::NotFound.into());
    index_of(handle, name).await?.ok_or_else(missing)
}

/// Runs `work` in a thread of its own that ends afterwards: it changes the
/// thread's network namespace, which no shared thread may come back with.
pub(super) async fn in_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetError> + Send + 'static,
) -> Result<T, NetError> {
    let (answer, result) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("netns".into())
        .spawn(move || drop(answer.send(work())))
        .map_err(step("start a thread"))?;
    result.await.map_err(|_| step("work in a network namespace")(io::Error::other("the thread died")))?
}

pub(super) fn make_namespace() -> Result<OwnedFd, NetError> {
    // Only this thread's changes, and the thread ends after this.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
        .map_err(|error| step("make a network namespace")(error.into()))?;
    without_ipv6()?;
    std::fs::File::open("/proc/thread-self/ns/net")
        .map(OwnedFd::from)
        .map_err(step("hold a network namespace"))
}

/// Turns IPv6 off for interfaces to come in this thread's namespace: else the
/// kernel gives them link-local addresses and asks for routers.
pub(super) fn without_ipv6() -> Result<(), NetError> {
    match std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(step("turn IPv6 off in a network namespace")(error))
        }
        _ => Ok(()),
    }
}

pub(super) fn enter(netns: &OwnedFd) -> Result<(), NetError> {
    let kind = Some(rustix::thread::LinkNameSpaceType::Network);
    rustix::thread::move_into_link_name_space(netns.as_fd(), kind)
        .map_err(|error| step("enter a network namespace")(error.into()))
}

/// Works on a namespace's interfaces from this thread, which then stays there.
pub(super) fn in_namespace<T>(
    netns: OwnedFd,
    work: impl AsyncFnOnce(Handle) -> Result<T, NetError>,
) -> Result<T, NetError> {
    enter(&netns)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(step("work in a network namespace"))?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(step("open a netlink socket"))?;
        tokio::spawn(connection);
        work(handle).await
    })
}

pub(super) fn configure_namespace(netns: OwnedFd, address: Ipv4Addr, prefix: u8) -> Result<(), NetError> {
    in_namespace(netns, async |handle| {
        let eth0 = inside(&handle, "eth0").await?;
        let add = handle.address().add(eth0, IpAddr::V4(address), prefix);
        add.execute().await.map_err(netlink("give an instance its address"))?;
        for index in [LOOPBACK, eth0] {
            let up = LinkUnspec::new_with_index(index).up().build();
            handle.link().set(up).execute().await.map_err(netlink("set an interface up"))?;
        }
        Ok(())
    })
}

/// The number that this network namespace knows another one by; none when it has
/// no interface with an end there.
///
/// # Errors
/// When the kernel refuses.
pub(super) async fn number(handle: &Handle, netns: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let mut question = NsidMessage::default();
    // Looked up while the question is sent, among this process's descriptors.
    question.attributes.push(NsidAttribute::Fd(netns.as_raw_fd().cast_unsigned()));
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(question));
    request.header.flags = NLM_F_REQUEST;
    let mut answers = handle.clone().request(request).map_err(to_io)?;
    while let Some(answer) = answers.next().await {
        match answer.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(told)) => {
                return Ok(told.attributes.into_iter().find_map(|attribute| match attribute {
                    // -1: none was given to it.
                    NsidAttribute::Id(number) => Some(number).filter(|number| *number >= 0),
                    _ => None,
                }));
            }
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            _ => {}
        }
    }
    Ok(None)
}

/// Gives the namespace of a process a way to everywhere, by `gateway`; again is
/// fine.
///
/// # Errors
/// When the process is not the one that was started then, or the kernel refuses.
pub(super) async fn add_way_out(pid: i32, ticks: u64, gateway: Ipv4Addr) -> Result<(), NetError> {
    let opened = std::fs::File::open(format!("/proc/{pid}/ns/net"));
    let netns: OwnedFd = opened.map_err(step("open an instance's network namespace"))?.into();
    // Looked at afterwards: what was opened is not of another process that has its pid now.
    match process::start_ticks(pid) {
        Ok(started) if started == ticks => {}
        Ok(_) => return Err(step("open an instance's network namespace")(io::ErrorKind::NotFound.into())),
        Err(error) => return Err(step("open an instance's network namespace")(error)),
    }
    in_thread(move || {
        in_namespace(netns, async |handle| {
            let default = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build();
            let add = handle.route().add(default).replace();
            add.execute().await.map_err(netlink("give an instance a way out"))
        })
    })
    .await
}
