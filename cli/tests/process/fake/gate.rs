//! A place where the fake stops until the test lets it go on: how a test catches the client in the middle of something
//! without a clock.

use std::sync::mpsc::{Receiver, Sender, channel};

/// A place where the fake waits for the test.
pub struct Gate {
    reached: Sender<()>,
    go_on: Receiver<()>,
}

/// The test's side of a [`Gate`].
pub struct GateKeeper {
    reached: Receiver<()>,
    go_on: Sender<()>,
}

impl Gate {
    pub fn new() -> (Gate, GateKeeper) {
        let (reached, is_reached) = channel();
        let (open, go_on) = channel();
        (Gate { reached, go_on }, GateKeeper { reached: is_reached, go_on: open })
    }

    /// Says that the client is here, and waits for the test.
    pub fn pass(self) {
        let _ = self.reached.send(());
        let _ = self.go_on.recv();
    }
}

impl GateKeeper {
    /// Until the client has come to the gate.
    pub fn wait(&self) {
        self.reached.recv().expect("the client comes this far");
    }

    pub fn open(&self) {
        let _ = self.go_on.send(());
    }
}
