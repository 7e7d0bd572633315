/** The services that we serve, as proto/ defines them: loaded once, shared by ttrpc and gRPC. */
import {fileURLToPath} from 'node:url';
import {loadSync, type MethodDefinition, type PackageDefinition} from '@grpc/proto-loader';
import {AdaptorError} from '../errors.ts';

/** What generated code would give us; proto-loader only knows at run time that these hold. */
export interface Hypervisor {
	readonly CreateVM: MethodDefinition<CreateVMRequest, {agentSocketPath: string}>;
	readonly StartVM: MethodDefinition<{id: string}, object>;
	readonly StopVM: MethodDefinition<{id: string}, object>;
	readonly Version: MethodDefinition<{version: string}, {version: string}>;
}

export interface CreateVMRequest {
	readonly id: string;
	readonly annotations: Readonly<Record<string, string>>;
	readonly networkNamespacePath: string;
}

export interface PodVMInfo {
	readonly GetInfo: MethodDefinition<{PodName: string; PodNamespace: string; Wait: boolean}, {VMID: string}>;
}

export interface Contract {
	/** All of it, for reflection. */
	readonly definition: PackageDefinition;
	readonly hypervisor: Hypervisor;
	readonly podVmInfo: PodVMInfo;
}

const protoDirectory = fileURLToPath(new URL('../../proto/', import.meta.url));

export function loadContract(directory: string = protoDirectory): Contract {
	// Field names as in the .proto files, which are kata's; absent fields get proto3's defaults.
	const definition = loadSync(['hypervisor.proto', 'podvminfo.proto'], {includeDirs: [directory], keepCase: true, defaults: true});
	const service = (name: string): unknown => {
		const found = definition[name];
		if (found === undefined || 'format' in found) {
			throw new AdaptorError({code: 'internal', what: 'A service is missing from the wire contracts', where: {service: name, directory}});
		}

		return found;
	};

	return {definition, hypervisor: service('hypervisor.Hypervisor') as Hypervisor, podVmInfo: service('podvminfo.PodVMInfo') as PodVMInfo};
}
