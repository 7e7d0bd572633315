/**
 * What the settings require of the KVM host: s390x guests, the CPUs of LIBVIRT_CPUSET, Secure Execution, network
 * protection. Checked before a VM is defined, so that a start on an unsuitable host leaves nothing behind. Logs at each
 * new connection whether the host can run confidential VMs and protect the network.
 */
import {AdaptorError} from '../core/errors.ts';
import {neverAborts} from '../core/lifetime.ts';
import {formatCpuset, parseCpuset} from '../libvirt/cpuset.ts';
import type {Logger} from '../core/log.ts';
import {SharedAnswer} from '../core/concurrency/shared-answer.ts';
import type {HostCapabilities, HostSupport} from './host-capabilities.ts';
import type {LibvirtCalls} from './libvirt-calls.ts';
import {
	defineFilter,
	isAbsent,
	readNetworkProtection,
	requireProtection,
	type NetworkProtection,
	type ProtectionWish,
} from './network-protection.ts';
import {secureExecutionUnavailable} from './secure-execution.ts';

export interface HostRequirementsOptions extends ProtectionWish {
	readonly session: Pick<LibvirtCalls, 'call' | 'onState'>;
	readonly capabilities: HostCapabilities;
	/** LIBVIRT_CPUSET */
	readonly cpuset?: string;
	/** Set if pod VMs must be confidential. */
	readonly launchSecurity?: 's390-pv';
	readonly log: Logger;
}

export class HostRequirements {
	readonly #options: HostRequirementsOptions;
	/** Read once per connection, like the capabilities. */
	readonly #protection: SharedAnswer<NetworkProtection>;
	#connections = 0;
	#warnedOfEmulation = false;

	/** Listens to the session as long as it lives. */
	constructor(options: HostRequirementsOptions) {
		this.#options = options;
		this.#protection = new SharedAnswer(async () =>
			defineFilter(
				options.session,
				await readNetworkProtection(options.session, options, neverAborts),
				neverAborts,
			),
		);
		options.session.onState(({name}) => {
			if (name === 'connected') {
				this.#connections++;
				this.#protection.forget();
				void this.#tellOfNetworkProtection();
				if (options.launchSecurity !== undefined) {
					void this.#tellOfSecureExecution(this.#connections);
				}
			}
		});
	}

	/** Call this after a failure that an update of the host may have caused: the next call asks the host again. */
	forget(): void {
		this.#options.capabilities.forget();
		this.#protection.forget();
	}

	/**
	 * @throws AdaptorError 'failed-precondition' when the network cannot be protected as the settings require; else as
	 * `readNetworkProtection`
	 */
	async networkProtection(signal: AbortSignal): Promise<NetworkProtection> {
		const protection = await this.#protection.get(signal);
		if (isAbsent(protection.filter) && protection.filter.mayChange === true) {
			this.#protection.forget();
		}

		requireProtection(this.#options, protection);
		return protection;
	}

	/**
	 * @throws AdaptorError 'failed-precondition' when the host cannot run what is configured; else as
	 * `LibvirtSession.call`
	 */
	async support(signal: AbortSignal): Promise<HostSupport> {
		const {capabilities, cpuset, launchSecurity, log} = this.#options;
		const support = await capabilities.support(signal);
		if (support.domainType === 'qemu' && !this.#warnedOfEmulation) {
			this.#warnedOfEmulation = true;
			log.warn(
				{domainType: 'qemu'},
				'the libvirt host has no KVM for s390x: pod VMs are emulated, which is slow and for tests only',
			);
		}

		const secureExecution = launchSecurity === undefined ? undefined : await capabilities.secureExecution(signal);
		if (secureExecution?.supported === false) {
			throw secureExecutionUnavailable(secureExecution);
		}

		try {
			checkCpuset(cpuset, support.cpus);
		} catch (error) {
			// CPUs can change while libvirt runs.
			this.forget();
			throw error;
		}

		return support;
	}

	/** Logs it at each connection, not at the first start. Never throws. */
	async #tellOfNetworkProtection(): Promise<void> {
		const {log, network} = this.#options;
		try {
			const {filter, isolation} = await this.networkProtection(neverAborts);
			const fields = {
				network,
				netFilter: isAbsent(filter) ? 'none' : filter.name,
				isolatedPort: isolation === 'on',
			};
			if (isAbsent(filter) && filter.absent === 'unavailable') {
				log.warn(
					{...fields, reason: filter.reason, remedy: filter.remedy},
					'no network filter: pod VMs can use the addresses of other pod VMs',
				);
			} else {
				log.info(fields, 'network protection of pod VMs');
			}
		} catch (error) {
			if (error instanceof AdaptorError && error.code === 'failed-precondition') {
				log.error(
					{network, err: error},
					'network protection is required, but the KVM host does not support it: no pod VM will start',
				);
			} else {
				log.debug(
					{network, err: error},
					'could not determine the network protection of pod VMs; asking again at the next start',
				);
			}
		}
	}

	/** Logs it at each connection, so that no pod has to fail first. Never throws. */
	async #tellOfSecureExecution(connection: number): Promise<void> {
		const {capabilities, log} = this.#options;
		try {
			const secureExecution = await capabilities.secureExecution(neverAborts);
			// After a lost connection, the new connection logs it.
			if (connection !== this.#connections) {
				return;
			}

			if (secureExecution.supported) {
				log.info({}, 'the KVM host can run confidential VMs');
			} else {
				log.error(
					{err: secureExecutionUnavailable(secureExecution)},
					'confidential VMs are required, but the KVM host cannot run them: no pod VM will start',
				);
			}
		} catch (error) {
			log.debug(
				{err: error},
				'could not determine whether the KVM host can run confidential VMs; asking again at the next start',
			);
		}
	}
}

/**
 * Without this check, libvirt reports it only when the VM starts, with an error of the kernel.
 * @throws AdaptorError 'failed-precondition'
 */
export function checkCpuset(cpuset: string | undefined, cpus: readonly number[]): void {
	const missing =
		cpuset === undefined || cpus.length === 0
			? new Set<number>()
			: (parseCpuset(cpuset) ?? new Set()).difference(new Set(cpus));
	if (missing.size > 0) {
		throw new AdaptorError({
			code: 'failed-precondition',
			what: 'LIBVIRT_CPUSET names CPUs that do not exist or are offline on the KVM host',
			where: {cpuset: cpuset ?? '', missing: formatCpuset(missing), online: formatCpuset(cpus)},
			remedy: 'Name only CPUs that "lscpu -e" shows as online on the KVM host, or enable the missing CPUs on the KVM host with "chcpu -e".',
		});
	}
}
