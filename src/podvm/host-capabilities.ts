/**
 * What the KVM host offers for s390x guests, according to libvirt's capabilities. Read once for each connection, since
 * a new connection may be to a host that was updated. Judges nothing.
 */
import {SharedAnswer} from '../core/concurrency/shared-answer.ts';
import {AdaptorError} from '../core/errors.ts';
import {neverAborts} from '../core/lifetime.ts';
import {procedures} from '../libvirt/wire/procedures.ts';
import {child, children, readXml, type XmlElement} from '../libvirt/xml.ts';
import type {LibvirtCalls} from './libvirt-calls.ts';
import {readSecureExecutionSupport, type SecureExecutionSupport} from './secure-execution.ts';

export interface HostSupport {
	/** `kvm` if the host offers it; `qemu` is software emulation (TCG), for tests only. */
	readonly domainType: 'kvm' | 'qemu';
	readonly machine: string;
	/** Path of the emulator on the host. */
	readonly emulator: string;
	/** Numbers of the online CPUs of the host, ascending; empty if libvirt does not report them. */
	readonly cpus: readonly number[];
}

/** The alias of the newest machine of the host. */
const machineAlias = 's390-ccw-virtio';

export class HostCapabilities {
	readonly #support: SharedAnswer<HostSupport>;
	readonly #secureExecution: SharedAnswer<SecureExecutionSupport>;

	/**
	 * Listens to the session as long as the session exists. At a new connection, this listener discards the cached
	 * answers before listeners that were added later are called.
	 */
	constructor(session: Pick<LibvirtCalls, 'call' | 'onState'>) {
		this.#support = new SharedAnswer(async () =>
			hostSupport((await session.call(procedures.connectGetCapabilities, undefined, neverAborts)).capabilities),
		);
		this.#secureExecution = new SharedAnswer(async () =>
			readSecureExecutionSupport(session, await this.support(neverAborts), neverAborts),
		);
		session.onState(({name}) => {
			if (name === 'connected') {
				this.forget();
			}
		});
	}

	/**
	 * @throws AdaptorError 'failed-precondition' for a host that runs no s390x guests at all; else as
	 * `LibvirtSession.call`
	 */
	async support(signal: AbortSignal): Promise<HostSupport> {
		return this.#support.get(signal);
	}

	/** @throws as `support`; LibvirtError where libvirt cannot tell */
	async secureExecution(signal: AbortSignal): Promise<SecureExecutionSupport> {
		return this.#secureExecution.get(signal);
	}

	/** Call this after a failure that an update of the host may have caused: the next call asks the host again. */
	forget(): void {
		this.#support.forget();
		this.#secureExecution.forget();
	}
}

/**
 * @param capabilities answer of CONNECT_GET_CAPABILITIES (libvirt, docs/formatcaps)
 * @throws AdaptorError 'failed-precondition' when the host runs no s390x guests
 */
export function hostSupport(capabilities: string): HostSupport {
	const described = readXml(capabilities);
	const architecture = children(described, 'guest')
		.filter(guest => child(guest, 'os_type')?.text === 'hvm')
		.flatMap(guest => children(guest, 'arch'))
		.find(({attributes}) => attributes['name'] === 's390x');
	for (const domainType of ['kvm', 'qemu'] as const) {
		const domain = children(architecture, 'domain').find(({attributes}) => attributes['type'] === domainType);
		// A domain type may have its own emulator and machines; otherwise those of the architecture apply.
		const emulator = (child(domain, 'emulator') ?? child(architecture, 'emulator'))?.text;
		const machine = newestMachine(domain) ?? newestMachine(architecture);
		if (domain !== undefined && emulator !== undefined && machine !== undefined) {
			return {domainType, machine, emulator, cpus: onlineCpus(described)};
		}
	}

	throw new AdaptorError({
		code: 'failed-precondition',
		what: 'The libvirt host cannot run s390x virtual machines',
		remedy: 'Point LIBVIRT_URI at a KVM host on IBM Z or LinuxONE with qemu-system-s390x installed.',
	});
}

/**
 * libvirt lists them by NUMA node. On s390x there is one node, or there are several that have no meaning (libvirt,
 * docs/formatcaps, "Host capabilities").
 */
function onlineCpus(capabilities: XmlElement): readonly number[] {
	return children(child(capabilities, 'host', 'topology', 'cells'), 'cell')
		.flatMap(cell => children(child(cell, 'cpus'), 'cpu'))
		.map(({attributes}) => Number(attributes['id'] ?? Number.NaN))
		.filter(cpu => Number.isInteger(cpu))
		.sort((one, other) => one - other);
}

function newestMachine(of: XmlElement | undefined): string | undefined {
	const alias = children(of, 'machine').find(({text}) => text === machineAlias);
	return alias === undefined ? undefined : (alias.attributes['canonical'] ?? machineAlias);
}
