//! The steps at which a process of ours can die and leave something: the failpoints of the kill matrix.
//!
//! Every place that makes or removes something calls `testyard_linux::step::reach` with its [`Step`] just
//! after. The kill matrix enumerates [`Step::ALL`], so a new step is tested as soon as it has a name.

macro_rules! steps {
    ($($(#[doc = $doc:literal])+ $name:ident = $word:literal,)+) => {
        /// A point in the life of a machine or an environment after which something exists, or is gone.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Step { $($(#[doc = $doc])+ $name,)+ }

        impl Step {
            /// Every step, in the order of a machine's life.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The word for it, `<process>.<what>`.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word,)+ }
            }
        }
    };
}

steps! {
    /// The client has written the intent to create.
    CreateIntent = "client.create-intent",
    /// The client has started the supervisor.
    CreateSupervisorSpawned = "client.create-spawned",
    /// The supervisor holds the machine's lock.
    SupervisorLocked = "supervisor.locked",
    /// The supervisor has made the machine's folders.
    SupervisorFolders = "supervisor.folders",
    /// The supervisor has made and recorded the machine's cgroups.
    SupervisorCgroups = "supervisor.cgroups",
    /// The supervisor has started the agent.
    SupervisorAgentSpawned = "supervisor.agent-spawned",
    /// The agent has answered.
    SupervisorAgentReady = "supervisor.agent-ready",
    /// The supervisor listens on the machine's socket.
    SupervisorListening = "supervisor.listening",
    /// The row says running.
    SupervisorRunning = "supervisor.running",
    /// The agent is in its namespaces.
    AgentEntered = "agent.entered",
    /// The agent has mounted the machine's root.
    AgentRoot = "agent.root",
    /// The agent serves.
    AgentServing = "agent.serving",
    /// The agent has started a command.
    AgentCommandStarted = "agent.command-started",
    /// The agent has made an environment's cgroups.
    AgentEnvironmentCgroups = "agent.environment-cgroups",
    /// The agent has cloned an environment's init.
    AgentEnvironmentCloned = "agent.environment-cloned",
    /// An environment is ready for a command.
    AgentEnvironmentReady = "agent.environment-ready",
    /// An environment's command has been started.
    AgentEnvironmentCommand = "agent.environment-command",
    /// An environment's command has ended and its status was sent.
    AgentEnvironmentStatus = "agent.environment-status",
    /// An environment's processes are gone.
    AgentEnvironmentKilled = "agent.environment-killed",
    /// An environment's cgroups are gone.
    AgentEnvironmentRemoved = "agent.environment-removed",
    /// An environment is kept after its command.
    AgentEnvironmentKept = "agent.environment-kept",
    /// What an environment changed is being copied to a layer.
    AgentLayerCopying = "agent.layer-copying",
    /// The client has a connection to the agent.
    ClientConnected = "client.connected",
    /// The client has asked for a command.
    ClientRequested = "client.requested",
    /// The runner has leased its machine.
    RunnerLeased = "runner.leased",
    /// A test's environment is held, and no service runs in it yet.
    ServiceEnvironment = "runner.service-environment",
    /// A service is ready.
    ServiceReady = "runner.service-ready",
    /// The services of a test have ended.
    ServicesEnded = "runner.services-ended",
    /// The services of a suite are ready.
    SharedServicesReady = "runner.shared-services-ready",
    /// The services of a suite have ended.
    SharedServicesEnded = "runner.shared-services-ended",
    /// The runner has started a test.
    RunnerStarted = "runner.started",
    /// The runner has begun to copy the working tree.
    RunnerFreezing = "runner.freezing",
    /// The runner has written down that an environment is to be kept.
    RunnerKeepIntent = "runner.keep-intent",
    /// The runner has written down which outputs come back.
    RunnerOutputsIntent = "runner.outputs-intent",
    /// The runner has fetched a test's outputs.
    RunnerOutputsFetched = "runner.outputs-fetched",
    /// The runner has put the first of a test's outputs in its place.
    RunnerOutputsMoving = "runner.outputs-moving",
    /// The runner has fetched a test's artifacts.
    RunnerArtifacts = "runner.artifacts",
    /// The runner has a result.
    RunnerResult = "runner.result",
    /// The runner is about to write its reports.
    RunnerReporting = "runner.reporting",
    /// The client has written the intent to make a cluster.
    ClusterIntent = "client.cluster-intent",
    /// A cluster's keys are kept.
    ClusterKeys = "client.cluster-keys",
    /// A node of a cluster has its machine.
    ClusterNode = "client.cluster-node",
    /// The daemons of a stage serve.
    ClusterDaemon = "client.cluster-daemon",
    /// Every node of a cluster answers, and its row does not say so yet.
    ClusterReady = "client.cluster-ready",
    /// A cluster's row says deleting.
    ClusterDeleting = "client.cluster-deleting",
    /// A cluster's machines are gone.
    ClusterNodesGone = "client.cluster-nodes-gone",
    /// The row says deleting.
    DeleteIntent = "supervisor.delete-intent",
    /// The agent and all below it are gone.
    DeleteAgentEnded = "supervisor.delete-agent-ended",
    /// The machine's cgroups are gone.
    DeleteCgroups = "supervisor.delete-cgroups",
    /// The machine's folders are gone.
    DeleteFolders = "supervisor.delete-folders",
    /// The row is gone.
    DeleteRow = "supervisor.delete-row",
}
