import test from 'ava';
import {LibvirtError, libvirtCode, type RemoteError} from '../../../src/libvirt/wire/errors.ts';

function refused(code: number, procedure = 'domainGetState', int1 = -1): LibvirtError {
	const remote: RemoteError = {
		code,
		domain: 10,
		message: 'why\n',
		level: 2,
		dom: null,
		str1: null,
		str2: null,
		str3: null,
		int1,
		int2: -1,
		net: null,
	};
	return new LibvirtError(remote, procedure);
}

for (const [name, number, code] of [
	['noDomain', 42, 'not-found'],
	['noNetwork', 43, 'not-found'],
	['noStoragePool', 49, 'not-found'],
	['noStorageVol', 50, 'not-found'],
	['storageVolExist', 90, 'already-exists'],
	['domExist', 28, 'already-exists'],
	['operationInvalid', 55, 'failed-precondition'],
	['configUnsupported', 67, 'failed-precondition'],
	['noSupport', 3, 'unimplemented'],
	['operationDenied', 29, 'permission-denied'],
	['accessDenied', 88, 'permission-denied'],
	['xmlDetail', 35, 'invalid-argument'],
	['authFailed', 45, 'unauthenticated'],
	['noMemory', 2, 'resource-exhausted'],
	['operationTimeout', 68, 'unavailable'],
	['operationFailed', 9, 'internal'],
	['internalError', 1, 'internal'],
] as const) {
	test(`${name} is libvirt's ${number} and means ${code}`, t => {
		t.is(libvirtCode[name], number);
		t.is(refused(number).code, code);
	});
}

test('a system error means what its errno says', t => {
	t.is(refused(38, 'storageVolUpload', 28).code, 'resource-exhausted');
	t.is(refused(38, 'storageVolUpload', 13).code, 'permission-denied');
	t.is(refused(38, 'storageVolUpload', 5).code, 'internal');
});

test('an RPC error is a lack of authentication only before the driver is open', t => {
	t.is(refused(39, 'connectOpen').code, 'unauthenticated');
	t.is(refused(39, 'storageVolUpload').code, 'internal');
});

test("the text says libvirt's words, the call, the number and what to do", t => {
	t.is(
		refused(49, 'storagePoolLookupByName').message,
		'libvirt: why (procedure "storagePoolLookupByName", libvirtCode 49). ' +
			'Look at "virsh pool-list --all" on the KVM host, then define and start the pool, or configure the name of another one.',
	);
});
