/** Answers the status API from what the daemon knows, and from what the KVM host and the kernel say. */
import {AdaptorError, toError} from '../core/errors.ts';
import {neverAborts, Scope} from '../core/lifetime.ts';
import type {LogLevel} from '../core/log.ts';
import type {RecentLines} from '../core/recent-lines.ts';
import type {PodNetwork, PodVm, PodVmRecord, SandboxId} from '../sandbox/ports.ts';
import type {SandboxRecord} from '../sandbox/records.ts';
import type {SandboxView} from '../sandbox/view.ts';
import type {CallContext, Handler} from '../ttrpc/service.ts';
import type {
	CommandOutput,
	InspectPodResponse,
	ListPodsResponse,
	Pod,
	StatusMethod,
	StatusMethods,
} from './contract.ts';
import {findPod} from './find-pod.ts';

export interface StatusContext {
	readonly node: string;
	readonly version: string;
	/** The image of pods that name none. */
	readonly defaultImage: string;
	readonly confidential: boolean;
	readonly sandboxes: {
		readonly views: () => readonly SandboxView[];
		readonly stop: (id: SandboxId, signal: AbortSignal) => Promise<void>;
	};
	/** What events have told of a sandbox. */
	readonly facts: {
		readonly of: (id: SandboxId) => {
			readonly agentCalls: number;
			readonly lastError?: {readonly text: string; readonly at: Date};
		};
	};
	readonly records: {readonly read: (id: SandboxId) => Promise<SandboxRecord | undefined>};
	readonly vms: {
		readonly list: (signal: AbortSignal) => Promise<readonly PodVmRecord[]>;
		readonly describe: (
			id: SandboxId,
			signal: AbortSignal,
		) => Promise<
			| {
					readonly domainXml: string;
					readonly volumes: ReadonlyArray<{name: string; capacity: bigint; allocation: bigint}>;
			  }
			| undefined
		>;
		readonly readConsole: (
			vm: PodVm,
			position: number,
			signal: AbortSignal,
		) => Promise<{readonly output: Buffer; readonly position: number}>;
	};
	readonly describeNetwork: (network: PodNetwork, signal: AbortSignal) => Promise<readonly CommandOutput[]>;
	readonly recentLines: RecentLines;
	readonly log: {level: LogLevel};
}

/** A host that does not answer must not hide what the daemon itself knows. */
const hostTimeoutMs = 3000;
/** An answer without output tells the caller that the VM is only quiet. */
const consoleWaitMs = 10_000;
/** Log lines of an inspection. */
const mostLines = 200;

const logLevels: readonly LogLevel[] = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'];

type Handlers = {
	readonly [Name in StatusMethod]: (
		request: StatusMethods[Name][0],
		context: CallContext,
	) => Promise<StatusMethods[Name][1]>;
};

export function statusHandlers(context: StatusContext): Readonly<Record<string, Handler>> {
	const handlers: Handlers = {
		ListPods: async (_, {signal}) => list(context, signal),
		InspectPod: async ({pod}, {signal}) => inspect(context, pod, signal),
		async ReadConsole({pod, position}, {signal}) {
			const {sandbox_id: id} = findPod((await list(context, signal)).pods, pod);
			const view = context.sandboxes.views().find(({names}) => names.sandboxId === id);
			if (view?.vm === undefined) {
				throw new AdaptorError({
					code: 'failed-precondition',
					what: 'The pod has no VM that runs',
					where: {pod, state: view?.state ?? 'orphaned'},
				});
			}

			using scope = new Scope(signal).deadline(consoleWaitMs, 'output of the console');
			try {
				return await context.vms.readConsole(view.vm, position, scope.signal);
			} catch (error) {
				if (scope.signal.aborted && !signal.aborted) {
					return {output: Buffer.alloc(0), position};
				}

				throw error;
			}
		},
		async RemovePod({pod}, {signal}) {
			const found = findPod((await list(context, signal)).pods, pod);
			// A caller that hangs up does not end the removal.
			await context.sandboxes.stop(found.sandbox_id, neverAborts);
			return found;
		},
		GetLogLevel: async () => ({level: context.log.level}),
		async SetLogLevel({level: text}) {
			const level = logLevels.find(each => each === text);
			if (level === undefined) {
				throw new AdaptorError({
					code: 'invalid-argument',
					what: `There is no log level ${JSON.stringify(text.slice(0, 20))}`,
					remedy: `Use one of ${logLevels.join(', ')}.`,
				});
			}

			context.log.level = level;
			return {level};
		},
	};
	return handlers;
}

async function list(context: StatusContext, signal: AbortSignal): Promise<ListPodsResponse> {
	const {node, version, vms, sandboxes} = context;
	using scope = new Scope(signal).deadline(hostTimeoutMs, 'libvirt to list the VMs');
	let hostError = '';
	let onHost: readonly PodVmRecord[] = [];
	try {
		onHost = await vms.list(scope.signal);
	} catch (error) {
		signal.throwIfAborted();
		hostError = toError(error).message;
	}

	const views = sandboxes.views();
	const known = new Set(views.map(({names}) => names.sandboxId));
	return {
		node,
		version,
		host_error: hostError,
		pods: [
			...views.map(view =>
				podOf(
					view,
					onHost.find(({sandboxId}) => sandboxId === view.names.sandboxId),
					context,
				),
			),
			...onHost
				.filter(({sandboxId, ownership}) => ownership !== 'foreign' && !known.has(sandboxId))
				.map(orphan => orphanOf(orphan, context)),
		],
	};
}

function podOf(
	{names, state, since, stage, stageSince, request, network, vm, address, failure, isRemovalPending}: SandboxView,
	onHost: PodVmRecord | undefined,
	{facts, defaultImage, confidential}: StatusContext,
): Pod {
	const {agentCalls, lastError} = facts.of(names.sandboxId);
	return {
		sandbox_id: names.sandboxId,
		namespace: names.pod?.namespace ?? '',
		name: names.pod?.name ?? '',
		instance_name: names.instanceName ?? '',
		state,
		stage: stage ?? '',
		stage_since: stageSince?.getTime() ?? 0,
		state_since: since.getTime(),
		vcpus: request?.vcpus ?? 0,
		memory_mib: request?.memoryMib ?? 0,
		image: request?.image ?? defaultImage,
		confidential,
		address: address ?? '',
		vni: network?.vxlanId ?? 0,
		vm_id: vm?.uuid ?? '',
		vm_created_at: onHost?.createdAt.getTime() ?? 0,
		agent_calls: agentCalls,
		last_error: failure ?? lastError?.text ?? '',
		last_error_at: lastError?.at.getTime() ?? 0,
		is_removal_pending: isRemovalPending,
	};
}

function orphanOf({sandboxId, pod, name, uuid, vni, createdAt}: PodVmRecord, {confidential}: StatusContext): Pod {
	return {
		sandbox_id: sandboxId,
		namespace: pod.namespace,
		name: pod.name,
		instance_name: name,
		state: 'orphaned',
		stage: '',
		stage_since: 0,
		state_since: 0,
		vcpus: 0,
		memory_mib: 0,
		image: '',
		confidential,
		address: '',
		vni,
		vm_id: uuid,
		vm_created_at: createdAt.getTime(),
		agent_calls: 0,
		last_error: '',
		last_error_at: 0,
		is_removal_pending: true,
	};
}

async function inspect(context: StatusContext, text: string, signal: AbortSignal): Promise<InspectPodResponse> {
	const pod = findPod((await list(context, signal)).pods, text);
	const {sandbox_id: id, instance_name: instanceName} = pod;
	const network = context.sandboxes.views().find(({names}) => names.sandboxId === id)?.network;
	using scope = new Scope(signal).deadline(hostTimeoutMs, 'the KVM host and the network namespace');
	const errors: string[] = [];
	const unlessFailed = async <T>(what: string, work: Promise<T>): Promise<T | undefined> => {
		try {
			return await work;
		} catch (error) {
			signal.throwIfAborted();
			errors.push(`${what}: ${toError(error).message}`);
			return undefined;
		}
	};

	const [record, domain, commands] = await Promise.all([
		unlessFailed('record', context.records.read(id)),
		unlessFailed('domain', context.vms.describe(id, scope.signal)),
		network === undefined ? [] : unlessFailed('network', context.describeNetwork(network, scope.signal)),
	]);
	const quoted = [`"sandboxId":${JSON.stringify(id)}`, `"instanceName":${JSON.stringify(instanceName)}`];
	return {
		pod,
		record: record === undefined ? '' : JSON.stringify(record, undefined, '\t'),
		domain_xml: domain?.domainXml ?? '',
		volumes: (domain?.volumes ?? []).map(({name, capacity, allocation}) => ({
			name,
			capacity: Number(capacity),
			allocation: Number(allocation),
		})),
		network: network === undefined ? '' : JSON.stringify(network, undefined, '\t'),
		commands: commands ?? [],
		log: context.recentLines.with(instanceName === '' ? quoted.slice(0, 1) : quoted).slice(-mostLines),
		errors,
	};
}
