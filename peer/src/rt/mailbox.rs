//! Bounded mailboxes between threads, and one-shot replies.
//!
//! Ends work on every runtime of the process. A sender waits while the mailbox is full: back-pressure, never growth.

pub use futures_channel::oneshot;

/// The sending end of a mailbox.
pub struct Sender<T>(flume::Sender<T>);

/// The receiving end of a mailbox, owned by one thread.
pub struct Receiver<T>(flume::Receiver<T>);

/// The thread at the other end has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the thread that should answer has ended")]
pub struct Closed;

/// A mailbox for at most `capacity` messages.
pub fn mailbox<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = flume::bounded(capacity);
    (Sender(sender), Receiver(receiver))
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Sender(self.0.clone())
    }
}

impl<T> Sender<T> {
    /// Sends, waiting while the mailbox is full.
    pub async fn send(&self, message: T) -> Result<(), Closed> {
        self.0.send_async(message).await.map_err(|_| Closed)
    }

    /// Sends if there is room; gives the message back if there is none or the receiver has gone.
    pub fn try_send(&self, message: T) -> Result<(), T> {
        self.0.try_send(message).map_err(flume::TrySendError::into_inner)
    }

    /// Sends, blocking this thread while the mailbox is full. For threads without a runtime.
    pub fn send_blocking(&self, message: T) -> Result<(), Closed> {
        self.0.send(message).map_err(|_| Closed)
    }

    /// Sends the message that `make` builds around a reply end, and waits for the reply.
    pub async fn call<R>(&self, make: impl FnOnce(oneshot::Sender<R>) -> T) -> Result<R, Closed> {
        let (reply, answer) = oneshot::channel();
        self.send(make(reply)).await?;
        answer.await.map_err(|_| Closed)
    }

    /// Whether the receiver has gone: nobody takes what is sent.
    pub fn is_closed(&self) -> bool {
        self.0.is_disconnected()
    }

    /// Messages waiting now.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no message waits now.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T> Drop for Receiver<T> {
    /// What nobody will take is let go now, not when the last sender goes: it may hold what a sender waits for.
    fn drop(&mut self) {
        while self.0.try_recv().is_ok() {}
    }
}

impl<T> Receiver<T> {
    /// The next message, or `None` when every sender has gone.
    pub async fn recv(&self) -> Option<T> {
        self.0.recv_async().await.ok()
    }

    /// The next message if one waits.
    pub fn try_recv(&self) -> Option<T> {
        self.0.try_recv().ok()
    }

    /// The next message, blocking this thread. For threads without a runtime.
    pub fn recv_blocking(&self) -> Option<T> {
        self.0.recv().ok()
    }

    /// The next message within `timeout`, blocking this thread.
    pub fn recv_blocking_timeout(&self, timeout: std::time::Duration) -> Option<T> {
        self.0.recv_timeout(timeout).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn what_nobody_takes_goes_with_the_receiver() {
        let (sender, receiver) = mailbox(2);
        let message = Arc::new(());
        assert!(sender.try_send(message.clone()).is_ok() && sender.try_send(message.clone()).is_ok());
        assert!(!sender.is_closed() && Arc::strong_count(&message) == 3);
        drop(receiver);
        assert!(sender.is_closed() && Arc::strong_count(&message) == 1);
        assert!(sender.try_send(message).is_err());
    }
}
