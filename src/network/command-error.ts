/**
 * Explains the error output of ip, tc, nft and nsenter. The texts are those of iproute2 6.1, nftables 1.0.6 and
 * util-linux 2.38 on Linux 6.18, in the C locale; kernel texts pass unchanged.
 */
import {AdaptorError, echoed, type ErrorCode} from '../core/errors.ts';
import {present} from '../core/present.ts';
import type {CommandResult} from './spawn-server.ts';

export type Meaning =
	| 'no-netns'
	| 'no-device'
	| 'no-qdisc'
	| 'exists'
	| 'vni-in-use'
	| 'other-vni'
	| 'other-qdisc'
	| 'port-in-use'
	| 'not-found'
	| 'unreachable'
	| 'not-permitted'
	| 'unsupported'
	| 'no-program'
	| 'unknown';

interface Explanation {
	readonly meaning: Meaning;
	readonly pattern: RegExp;
	readonly code: ErrorCode;
	readonly reason: string;
	readonly remedy?: string;
}

/**
 * The first match counts, so specific entries come first. No entry has the code 'not-found', because that could be
 * understood as "the pod is gone". The error of a program cannot prove this: the namespace may exist but not be visible
 * to the program. See netns.ts.
 */
const explanations: readonly Explanation[] = [
	{
		meaning: 'no-netns',
		code: 'failed-precondition',
		reason: 'the network namespace cannot be entered',
		// The last alternative: a plain file whose namespace mount is gone, or not visible here.
		pattern:
			/nsenter: cannot open .*: No such file|Invalid "netns" value|reassociate to namespace '.*' failed: Invalid argument/v,
		remedy: 'If it exists on the node, mount /run/netns into this container with mountPropagation: HostToContainer.',
	},
	{
		meaning: 'no-device',
		pattern: /Cannot find device|does not exist/v,
		code: 'failed-precondition',
		reason: 'the interface does not exist',
	},
	{
		meaning: 'no-qdisc',
		pattern: /Cannot find specified qdisc|Error: Invalid handle/v,
		code: 'failed-precondition',
		reason: 'the redirection does not exist',
	},
	{
		meaning: 'vni-in-use',
		pattern: /VXLAN device with the specified VNI already exists/v,
		code: 'already-exists',
		reason: 'the VNI is in use on this node',
	},
	{
		meaning: 'other-qdisc',
		pattern: /must match existing qdisc/v,
		code: 'failed-precondition',
		reason: 'the interface of the pod has a traffic filter of another program (clsact)',
		remedy: 'Peer pods do not work with CNI plugins that filter inside the network namespace of the pod: turn that feature off.',
	},
	{
		meaning: 'other-vni',
		pattern: /Cannot change VNI/v,
		code: 'already-exists',
		reason: 'a tunnel with another VNI exists',
	},
	{
		meaning: 'port-in-use',
		pattern: /Address already in use/v,
		code: 'failed-precondition',
		reason: 'the VXLAN port is in use on this node',
		remedy: 'Set VXLAN_PORT to a UDP port that "ss -uln" does not show on this node. Firewalls between this node and the KVM host must allow it.',
	},
	{meaning: 'exists', pattern: /File exists/v, code: 'already-exists', reason: 'it already exists'},
	{
		meaning: 'unreachable',
		pattern: /Network is unreachable|No route to host/v,
		code: 'failed-precondition',
		reason: 'this node has no route to that address',
		remedy: 'The node must reach the network of LIBVIRT_NET.',
	},
	{
		meaning: 'not-permitted',
		pattern: /Operation not permitted|Permission denied/v,
		code: 'permission-denied',
		reason: 'the operation is not permitted',
		remedy: 'Run the container privileged, or with the capabilities NET_ADMIN and SYS_ADMIN.',
	},
	{
		meaning: 'unsupported',
		pattern: /syntax error|Operation not supported|Protocol not supported/v,
		code: 'failed-precondition',
		reason: 'the kernel or the program does not support it',
		remedy: 'Update nftables and the kernel of this node; nftables 1.0.6 works.',
	},
	// A missing kernel module, table or file of the program: this proves nothing about the namespace.
	{
		meaning: 'not-found',
		pattern: /No such file or directory/v,
		code: 'failed-precondition',
		reason: 'the kernel or the program lacks a required part',
	},
];

/** Status of a shell or nsenter if the program does not exist. */
const statusOfNoProgram = 127;
const noProgram: Omit<Explanation, 'pattern'> = {
	meaning: 'no-program',
	code: 'failed-precondition',
	reason: 'the program is not installed',
	remedy: 'Install iproute2, nftables and util-linux.',
};

export class CommandError extends AdaptorError {
	override readonly name = 'CommandError';
	readonly meaning: Meaning;
	/**
	 * A signal ended the program, for example the OOM killer. It is unknown what the program did before.
	 */
	readonly wasKilled: boolean;

	/** @param what a phrase after "Could not", e.g. "redirect the pod's traffic" */
	constructor(
		what: string,
		program: string,
		{status, stderr}: CommandResult,
		where: Readonly<Record<string, string | number>>,
	) {
		const said = echoed(stderr.trim().replaceAll(/\s+/gv, ' '));
		const explanation =
			status === statusOfNoProgram ? noProgram : explanations.find(({pattern}) => pattern.test(stderr));
		super({
			code: explanation?.code ?? 'internal',
			what: `Could not ${what}: ${explanation === undefined ? `${program} ended with status ${status}` : explanation.reason}${said === '' ? '' : ` ("${said}")`}`,
			where,
			...present({remedy: explanation?.remedy}),
		});
		this.meaning = explanation?.meaning ?? 'unknown';
		this.wasKilled = status > 128;
	}
}

/** Whether the command failed for one of these reasons. */
export function means(error: unknown, ...meanings: readonly Meaning[]): boolean {
	return error instanceof CommandError && meanings.includes(error.meaning);
}
