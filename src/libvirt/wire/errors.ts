/**
 * Error answers of libvirt, and the error for a missing answer. Source: libvirt, include/libvirt/virterror.h
 * (virErrorNumber), src/rpc/virnetprotocol.x (virNetMessageError). Texts differ between versions, so decisions must use
 * `libvirtCode`.
 */
import {AdaptorError, type ErrorCode} from '../../core/errors.ts';
import {present} from '../../core/present.ts';
import {i32, opaque, optional, string, struct, type XdrType} from './xdr.ts';

/** The values of virErrorNumber that decisions need. */
export const libvirtCode = {
	internalError: 1,
	noMemory: 2,
	noSupport: 3,
	noConnect: 5,
	invalidArg: 8,
	operationFailed: 9,
	xmlError: 27,
	domExist: 28,
	operationDenied: 29,
	xmlDetail: 35,
	networkExist: 37,
	systemError: 38,
	rpc: 39,
	noDomain: 42,
	noNetwork: 43,
	authFailed: 45,
	noStoragePool: 49,
	noStorageVol: 50,
	operationInvalid: 55,
	noNwfilter: 62,
	noSecret: 66,
	configUnsupported: 67,
	operationTimeout: 68,
	argumentUnsupported: 74,
	operationAborted: 78,
	authCancelled: 79,
	noDomainMetadata: 80,
	operationUnsupported: 84,
	agentUnresponsive: 86,
	resourceBusy: 87,
	accessDenied: 88,
	storageVolExist: 90,
	xmlInvalidSchema: 92,
	authUnavailable: 94,
	deviceMissing: 99,
} as const;

interface Meaning {
	readonly code: ErrorCode;
	readonly remedy?: string;
}

const badXml: Meaning = {
	code: 'invalid-argument',
	remedy: 'This is a defect of the program that wrote the XML: report it with the text of the error and the version of libvirt.',
};
const unauthenticated: Meaning = {
	code: 'unauthenticated',
	remedy: 'Connect as a user that may manage libvirt: root, or a member of the group "libvirt" on the KVM host, or set auth_unix_rw = "none" in its libvirtd.conf.',
};
const unsupported: Meaning = {
	code: 'unimplemented',
	remedy: 'The driver, or this version of libvirt on the KVM host, cannot do this: update libvirt, or check the driver in the URI.',
};

const meanings: Readonly<Record<number, Meaning>> = {
	[libvirtCode.noMemory]: {
		code: 'resource-exhausted',
		remedy: 'The KVM host does not have enough memory. Free some memory, or run fewer VMs on it.',
	},
	[libvirtCode.noSupport]: unsupported,
	[libvirtCode.noConnect]: {
		code: 'unavailable',
		remedy: "Install and start the driver that the URI names on the KVM host (for qemu: libvirt's QEMU driver and QEMU).",
	},
	[libvirtCode.invalidArg]: {code: 'invalid-argument'},
	[libvirtCode.xmlError]: badXml,
	[libvirtCode.domExist]: {code: 'already-exists'},
	[libvirtCode.operationDenied]: {
		code: 'permission-denied',
		remedy: "The connection is read-only: use libvirt's read-write socket.",
	},
	[libvirtCode.xmlDetail]: badXml,
	[libvirtCode.networkExist]: {code: 'already-exists'},
	[libvirtCode.noDomain]: {code: 'not-found'},
	[libvirtCode.noNetwork]: {
		code: 'not-found',
		remedy: 'Look at "virsh net-list --all" on the KVM host, then define and start the network, or configure the name of another one.',
	},
	[libvirtCode.authFailed]: unauthenticated,
	[libvirtCode.noStoragePool]: {
		code: 'not-found',
		remedy: 'Look at "virsh pool-list --all" on the KVM host, then define and start the pool, or configure the name of another one.',
	},
	[libvirtCode.noStorageVol]: {
		code: 'not-found',
		remedy: 'Look at "virsh vol-list POOL" on the KVM host; a volume that was created without libvirt is listed only after "virsh pool-refresh POOL".',
	},
	[libvirtCode.operationInvalid]: {code: 'failed-precondition'},
	[libvirtCode.noNwfilter]: {
		code: 'not-found',
		remedy: 'Look at "virsh nwfilter-list" on the KVM host, or configure the name of another one.',
	},
	[libvirtCode.noSecret]: {code: 'not-found'},
	[libvirtCode.configUnsupported]: {
		code: 'failed-precondition',
		remedy: 'The KVM host or its QEMU cannot run such a VM: compare with "virsh domcapabilities" there.',
	},
	[libvirtCode.operationTimeout]: {
		code: 'unavailable',
		remedy: 'Another operation on the same object takes a long time. Check the log of libvirtd on the KVM host.',
	},
	[libvirtCode.argumentUnsupported]: unsupported,
	[libvirtCode.operationAborted]: {code: 'aborted'},
	[libvirtCode.authCancelled]: unauthenticated,
	[libvirtCode.noDomainMetadata]: {code: 'not-found'},
	[libvirtCode.operationUnsupported]: unsupported,
	[libvirtCode.agentUnresponsive]: {code: 'unavailable'},
	[libvirtCode.resourceBusy]: {
		code: 'failed-precondition',
		remedy: 'Another operation uses this object. Retry later.',
	},
	[libvirtCode.accessDenied]: {
		code: 'permission-denied',
		remedy: 'The access control of libvirt does not allow this operation for this user: see "access_drivers" in libvirtd.conf on the KVM host.',
	},
	[libvirtCode.storageVolExist]: {code: 'already-exists'},
	[libvirtCode.xmlInvalidSchema]: badXml,
	[libvirtCode.authUnavailable]: unauthenticated,
	[libvirtCode.deviceMissing]: {code: 'not-found'},
};

/** Linux error numbers, the same on every architecture. libvirt sends them as `int1` of a system error. */
const meaningsOfErrno: Readonly<Record<number, Meaning>> = {
	1: {code: 'permission-denied'},
	2: {code: 'not-found'},
	12: {code: 'resource-exhausted', remedy: 'The KVM host is short of memory: free some, or run fewer VMs on it.'},
	13: {
		code: 'permission-denied',
		remedy: 'Check the owner and the mode of the path on the KVM host, and the SELinux or AppArmor log for denied accesses.',
	},
	28: {
		code: 'resource-exhausted',
		remedy: 'The storage on the KVM host is full, or more data was written than the volume can hold: look at "virsh pool-info POOL".',
	},
	122: {code: 'resource-exhausted', remedy: 'A disk quota on the KVM host is used up.'},
};

const uuid = opaque(16);

/** virNetMessageError. */
export const remoteError = struct({
	code: i32,
	domain: i32,
	message: optional(string),
	level: i32,
	dom: optional(struct({name: string, uuid, id: i32})),
	str1: optional(string),
	str2: optional(string),
	str3: optional(string),
	int1: i32,
	int2: i32,
	net: optional(struct({name: string, uuid})),
});

export type RemoteError = XdrType<typeof remoteError>;

/** An error answer to one call. The connection stays usable. */
export class LibvirtError extends AdaptorError {
	override readonly name = 'LibvirtError';
	/** virErrorNumber, see `libvirtCode`. */
	readonly libvirtCode: number;
	/** virErrorDomain: the part of libvirt that reports the error. */
	readonly libvirtDomain: number;
	/** virErrorLevel: 1 warning, 2 error. */
	readonly level: number;
	/** The original text of libvirt. */
	readonly libvirtMessage: string;
	readonly procedure: string;
	/** Linux error number of a system error. */
	readonly errno: number | undefined;

	constructor(remote: RemoteError, procedure: string) {
		const libvirtMessage = (remote.message ?? '').trim() || 'no reason given';
		super({
			...meaningOf(remote, procedure),
			what: `libvirt: ${libvirtMessage}`,
			where: {procedure, libvirtCode: remote.code},
		});
		this.libvirtCode = remote.code;
		this.libvirtDomain = remote.domain;
		this.level = remote.level;
		this.libvirtMessage = libvirtMessage;
		this.procedure = procedure;
		this.errno = remote.code === libvirtCode.systemError ? remote.int1 : undefined;
	}
}

function meaningOf({code, int1}: RemoteError, procedure: string): Meaning {
	if (code === libvirtCode.systemError) {
		return meaningsOfErrno[int1] ?? {code: 'internal'};
	}

	if (code === libvirtCode.rpc) {
		// A general number; before the driver is open, it means "authentication required".
		return procedure.startsWith('auth') || procedure === 'connectOpen' ? unauthenticated : {code: 'internal'};
	}

	return meanings[code] ?? {code: 'internal'};
}

/** Whether `error` is an answer of libvirt with this number. */
export function isLibvirtError(error: unknown, code: number): error is LibvirtError {
	return error instanceof LibvirtError && error.libvirtCode === code;
}

/** No answer: there is no connection, or it was lost. */
export class LibvirtConnectionError extends AdaptorError {
	override readonly name = 'LibvirtConnectionError';
	/** False if the daemon certainly never received the call. */
	readonly mayHaveBeenExecuted: boolean;

	constructor(procedure: string, mayHaveBeenExecuted: boolean, transport: string | undefined, reason: AdaptorError) {
		super({
			code: isRefusal(reason) ? reason.code : 'unavailable',
			what: `libvirt did not answer ${procedure}${mayHaveBeenExecuted ? ', which it may have executed' : ', which it never received'}: ${reason.what}`,
			where: {...reason.where, procedure, ...present({transport})},
			...present({remedy: reason.remedy}),
			cause: reason,
		});
		this.mayHaveBeenExecuted = mayHaveBeenExecuted;
	}
}

const refusals: ReadonlySet<ErrorCode> = new Set([
	'unauthenticated',
	'permission-denied',
	'invalid-argument',
	'failed-precondition',
	'unimplemented',
]);

/** Whether a quick retry is pointless, because an administrator has to change something first. */
export function isRefusal(reason: AdaptorError): boolean {
	return refusals.has(reason.code);
}
