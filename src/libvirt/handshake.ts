/**
 * The first calls on a connection: authentication, opening the driver, keepalive. Source: libvirt,
 * src/remote/remote_driver.c (order of the calls), src/remote/remote_protocol.x (remote_auth_type).
 */
import {AdaptorError} from '../core/errors.ts';
import {lifecycleEventId} from './wire/events.ts';
import {procedures} from './wire/procedures.ts';
import type {RpcConnection} from './rpc.ts';

/** remote_auth_type */
const auth = {none: 0, sasl: 1, polkit: 2} as const;
/** VIR_DRV_FEATURE_PROGRAM_KEEPALIVE: querying it makes the daemon send pings. */
const keepaliveFeature = 10;

/** Authenticates, if the daemon requires it, and opens the driver. */
export async function openDriver(connection: RpcConnection, uri: string, signal: AbortSignal): Promise<void> {
	const {types} = await connection.call(procedures.authList, undefined, signal);
	if (types.includes(auth.polkit)) {
		await connection.call(procedures.authPolkit, undefined, signal);
	} else if (types.length > 0 && !types.includes(auth.none)) {
		throw new AdaptorError({
			code: 'unauthenticated',
			what: types.includes(auth.sasl)
				? 'The libvirt daemon requires SASL authentication, which is not supported'
				: 'The libvirt daemon requires an unknown kind of authentication',
			where: {types: types.join(' ')},
			remedy: 'Connect over ssh as a user with access to libvirt\'s unix socket, or set auth_unix_rw to "none" or "polkit" in libvirtd.conf on the KVM host.',
		});
	}

	await connection.call(procedures.connectOpen, {name: uri, flags: 0}, signal);
}

/**
 * Turns on keepalive and lifecycle events, and reads the versions of the server. `keepalive`: whether the daemon
 * answers pings.
 */
export async function prepareDriver(
	connection: RpcConnection,
	signal: AbortSignal,
): Promise<{
	readonly keepalive: boolean;
	readonly driver: string;
	readonly libvirtVersion: string;
	readonly hostname: string;
}> {
	const [feature, , {type}, {libVer}, {hostname}] = await Promise.all([
		connection.call(procedures.connectSupportsFeature, {feature: keepaliveFeature}, signal),
		connection.call(
			procedures.connectDomainEventCallbackRegisterAny,
			{eventId: lifecycleEventId, dom: null},
			signal,
		),
		connection.call(procedures.connectGetType, undefined, signal),
		connection.call(procedures.connectGetLibVersion, undefined, signal),
		connection.call(procedures.connectGetHostname, undefined, signal),
	]);
	return {keepalive: feature.supported === 1, driver: type, libvirtVersion: versionText(libVer), hostname};
}

function versionText(version: bigint): string {
	return `${version / 1_000_000n}.${(version / 1000n) % 1000n}.${version % 1000n}`;
}
